"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): the test split ships with the package, the training split is fetched once.

Checksums are of the unpacked IDX bytes, because distributors pack the published files anew.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path

from ganfast.data import cache as caching
from ganfast.data import idx
from ganfast.data.pictures import Found, Rows, Source, Stack
from ganfast.errors import Damaged, NotFound, NotWritable

CLASS_NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
TIMEOUT = 30.0  # seconds without a byte
TRAIN = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
}
TRAIN_IMAGES = next(iter(TRAIN))
MAX_DOWNLOAD = 64 << 20  # bytes; the larger file has 26 MB


def embedded() -> Found:
    """The 10,000 test images, from inside the package."""
    folder = resources.files("ganfast.data") / "embedded"
    packed = {name: (folder / f"t10k-{name}-ubyte.gz").read_bytes() for name in ("images-idx3", "labels-idx1")}
    images = idx.images(gzip.decompress(packed["images-idx3"]), "fashion-mnist-10k")
    labels = idx.labels(gzip.decompress(packed["labels-idx1"]), len(images), "fashion-mnist-10k", classes=len(CLASS_NAMES))
    return Found("fashion-mnist-10k", {"real": Rows(Stack(images, "fashion-mnist-10k"), labels)}, CLASS_NAMES)


def train(cache: str | os.PathLike[str] | None) -> Source:
    """The 60,000 training images: from the system, from an earlier download into the cache folder, or downloaded now."""

    def at(folder: Path) -> Source | None:
        here = all(os.path.isfile(folder / name) for name in TRAIN)
        return idx.source(folder / TRAIN_IMAGES, name="fashion-mnist", class_names=CLASS_NAMES) if here else None

    if source := at(SYSTEM):
        return source
    mine = caching.folder(cache) / "downloads" / "fashion-mnist"
    if source := at(mine):
        return source
    for name, checksum in TRAIN.items():
        _download(name, checksum, mine)
    return idx.source(mine / TRAIN_IMAGES, name="fashion-mnist", class_names=CLASS_NAMES)


def _download(name: str, checksum: str, folder: Path) -> None:
    try:
        with urllib.request.urlopen(URL + name, timeout=TIMEOUT) as response:
            packed = response.read(MAX_DOWNLOAD)
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        raise NotFound(
            f"fashion-mnist is not on this machine and {URL}{name} cannot be fetched ({error}); install the Debian package "
            "dataset-fashion-mnist, pass the path of a train-images-idx3-ubyte.gz, or use fashion-mnist-10k, which is built in"
        ) from None
    try:
        sound = hashlib.sha256(gzip.decompress(packed)).hexdigest() == checksum
    except (OSError, EOFError):
        sound = False
    if not sound:
        raise Damaged(f"{URL}{name} does not have the published contents (SHA-256 {checksum} unpacked); nothing was stored")
    part = folder / f"{name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise NotWritable(
            f"fashion-mnist cannot be stored in {folder} ({error.strerror}); set GANFAST_CACHE to a folder that can"
        ) from None
