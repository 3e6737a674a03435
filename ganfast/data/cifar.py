"""CIFAR-10 and CIFAR-100 in their published form: a tar archive of pickles (Krizhevsky 2009), read in place.

A pickle can run any code, so these go through an unpickler that knows only the names of which numpy's arrays are made, and puts
inert stand-ins in their place.
"""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import labels as label_rules
from ganfast.data import limits
from ganfast.data.pictures import Found, Rows, Stack
from ganfast.errors import InvalidData

SIDE = 32
TRAIN = re.compile(r"(?:.*/)?(?:data_batch_\d+|train)")
META = re.compile(r"(?:.*/)?(?:batches\.meta|meta)")
LABELS = ("labels", "fine_labels")
NAMES = ("label_names", "fine_label_names")


class _Bytes:
    """Stands in for the numpy.dtype of unsigned bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of type {code!r}, expected u1")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like mean nothing for single bytes."""


class _Array:
    """Stands in for a numpy array under reconstruction; its state is (version, shape, dtype, is Fortran order, bytes)."""

    pixels: NDArray[np.uint8]

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _Bytes) or fortran:
            raise pickle.UnpicklingError("an array that is not of unsigned bytes in C order")
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape)


class _Ndarray:
    """Stands in for the class numpy.ndarray, an argument of its reconstruction only."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding!r}, expected latin1")
    return text.encode("latin1")


KNOWN: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Bytes,
    ("_codecs", "encode"): _latin1,  # how later Pythons write bytes under an old protocol
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return KNOWN[module, name]


def read(path: Path) -> Found:
    """The training images and labels of a CIFAR archive, packed or plain; fine labels for CIFAR-100."""
    batches: dict[str, dict[str, Any]] = {}
    names: tuple[str, ...] = ()
    unpacked = 0
    try:
        with tarfile.open(path) as archive:
            for count, member in enumerate(archive):
                if count > limits.ENTRIES:
                    raise InvalidData(f"{path} has more than {limits.ENTRIES} entries")
                if not member.isfile() or not (TRAIN.fullmatch(member.name) or META.fullmatch(member.name)):
                    continue
                unpacked += member.size
                limits.check_ratio(f"{path}: the {unpacked} bytes up to {member.name}", unpacked, path.stat().st_size)
                content = _unpickled(archive, member, path)
                if TRAIN.fullmatch(member.name):
                    batches[member.name] = content
                else:
                    names = _names(content)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InvalidData(f"{path} is truncated or no tar archive: {error}") from None
    if not batches:
        raise InvalidData(f"{path} holds no CIFAR training batches (data_batch_1 .. data_batch_5, or train)")
    parts = [_batch(batches[member], f"{path}: {member}", len(names) or None) for member in sorted(batches)]
    images = np.concatenate([images for images, _ in parts])
    known = np.concatenate([labels for _, labels in parts])
    return Found(path.name, {"real": Rows(Stack(images, str(path)), known)}, names)


def _unpickled(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> dict[str, Any]:
    where = f"{path}: {member.name}"
    if member.size > limits.ENTRY_BYTES:
        raise InvalidData(f"{where} has {member.size} bytes; the limit is {limits.ENTRY_BYTES}")
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise InvalidData(f"{where} is truncated: {len(data)} of {member.size} bytes")
    try:
        content = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise InvalidData(f"{where} is damaged or no CIFAR pickle: {error}") from None
    if not isinstance(content, dict):
        raise InvalidData(f"{where} must hold a dictionary, got {type(content).__name__}")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _names(content: Mapping[str, Any]) -> tuple[str, ...]:
    listed: list[Any] = next((content[key] for key in NAMES if isinstance(content.get(key), list)), [])
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in listed)


def _batch(content: Mapping[str, Any], where: str, classes: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = content.get("data")
    pixels = getattr(data, "pixels", None) if isinstance(data, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE * SIDE or len(pixels) == 0:
        shape = "nothing of the kind" if pixels is None else pixels.shape
        raise InvalidData(f"{where}: 'data' must be unsigned bytes of shape (N, {3 * SIDE * SIDE}), got {shape}")
    listed = next((content[key] for key in LABELS if key in content), None)
    if listed is None:
        raise InvalidData(f"{where}: there must be {' or '.join(LABELS)}")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return images, label_rules.checked(listed, len(images), where, classes)
