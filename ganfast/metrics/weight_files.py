"""Published weights: where the file lies, from where it is fetched once, and that it is the one that was published."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.data import cache as caching
from ganfast.errors import Damaged, InvalidData, NotFound, NotWritable
from ganfast.files import write_atomically

TIMEOUT = 30.0  # seconds without a byte
FOLDER = "weights"  # below the cache


@dataclass(frozen=True)
class Published:
    """One file under the names and at the addresses that it is published under."""

    title: str
    urls: tuple[str, ...]
    sha256: str
    size: int  # bytes

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(url.rpartition("/")[2] for url in self.urls)


# pytorch-fid's and torch-fidelity's files are the same bytes
INCEPTION_2015 = Published(
    "the Inception weights of 2015",
    (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)


@dataclass(frozen=True)
class Weights:
    """A state dict with the file it was in."""

    file: str
    sha256: str
    tensors: Mapping[str, Tensor]

    @property
    def facts(self) -> dict[str, str]:
        """What a manifest tells of them."""
        return {"weights": self.file, "weights_sha256": self.sha256}


def fetched(published: Published, cache: str | os.PathLike[str] | None = None) -> Path:
    """The file in the cache folder (by default $GANFAST_CACHE, else the user's), downloaded if it is not there.

    Raises Damaged where it is not the published one, and NotFound where it cannot be fetched, both with what to do; NotWritable.
    """
    folder = caching.folder(cache) / FOLDER
    for name in published.names:
        if (folder / name).is_file():
            checked(folder / name, published)
            return folder / name
    data = _download(published, folder)
    target = folder / published.names[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, data)
    except OSError as error:
        raise NotWritable(
            f"{published.title} cannot be stored in {folder} ({error}); set GANFAST_CACHE to a folder that can"
        ) from None
    return target


def checked(path: Path, published: Published) -> None:
    """Raises Damaged unless the file has the published bytes."""
    got = sha256(path)
    if got != published.sha256:
        raise Damaged(
            f"{path} is not {published.title}: its SHA-256 is {got}, published is {published.sha256}; "
            f"delete it, and it is fetched again, or put the file of {published.urls[0]} there"
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str | os.PathLike[str]) -> Weights:
    """The state dict of a file that torch.save wrote, read without running anything in it.

    Raises NotFound; Damaged where it is cut off or no state dict; InvalidData for TorchScript, which is a program.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path} does not exist or is no file")
    try:
        program = _is_torchscript(path)
        tensors: Any = None if program else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged one fails as archives, unpicklers, decoders and memory do
        raise Damaged(f"{path} cannot be read as weights ({_first_line(error)}); fetch it again") from None
    if program:
        raise InvalidData(
            f"{path} is TorchScript, a program, and is not run; the same weights as a state dict: {INCEPTION_2015.urls[0]}"
        )
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided for name, value in tensors.items()
    ):
        raise Damaged(f"{path} holds no state dict, names with tensors; fetch it again")
    return Weights(path.name, sha256(path), tensors)


def fill(module: nn.Module, weights: Weights) -> None:
    """Load a state dict into a network. Raises Damaged that names what is missing, left over, of another shape, NaN or Inf."""
    wanted = {name: values for name, values in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = {name: values for name, values in weights.tensors.items() if not name.endswith("num_batches_tracked")}
    wrong = [
        *(f"{name} is missing" for name in wanted.keys() - given.keys()),
        *(f"{name} is not one of its weights" for name in given.keys() - wanted.keys()),
        *(
            f"{name} is {tuple(given[name].shape)} and should be {tuple(values.shape)}"
            for name, values in wanted.items()
            if name in given and given[name].shape != values.shape
        ),
        *(f"{name} holds NaN or Inf" for name, values in given.items() if not values.isfinite().all()),
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise Damaged(
            f"{weights.file} does not fit {type(module).__name__}: {min(wrong)}{more}; fetch it again, or give the right file"
        )
    module.load_state_dict(given, strict=False)


def _download(published: Published, folder: Path) -> bytes:
    failures = []
    for url in published.urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
                data: bytes = response.read(published.size + 1)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {error}")
            continue
        if hashlib.sha256(data).hexdigest() == published.sha256:
            return data
        failures.append(f"{url}: not the published contents")
    raise NotFound(
        f"{published.title} are not on this machine and cannot be fetched ({'; '.join(failures)}); put {published.names[0]} "
        f"({published.size / 1e6:.0f} MB, SHA-256 {published.sha256}) into {folder}, or give its path as weights (--weights); "
        "without it there are the networks fashion-cnn and efficientnet-lite0 (--network)"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
