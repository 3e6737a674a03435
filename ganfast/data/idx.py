"""The IDX format of MNIST and its kin: a big-endian header of magic number and sizes, then the bytes, often gzipped.

Magic: two zero bytes, a type code (0x08: unsigned bytes), the number of dimensions.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ganfast.data import digest, limits
from ganfast.data import labels as label_rules
from ganfast.data.pictures import Found, Rows, Source, Stack
from ganfast.errors import InvalidData

MAGIC = b"\x00\x00\x08"


def array(data: bytes, where: str) -> NDArray[np.uint8]:
    """The array that unpacked IDX bytes hold. Raises :class:`~ganfast.errors.InvalidData` if header and length disagree."""
    if len(data) < 4 or not data.startswith(MAGIC):
        raise InvalidData(f"{where} is no IDX file of unsigned bytes: it must begin with 00 00 08, not {data[:3].hex(' ')}")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(data) < start:
        raise InvalidData(f"{where}: the IDX header of {dimensions} dimensions is cut short")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if math.prod(shape) != len(data) - start:
        raise InvalidData(f"{where}: the IDX header promises {' x '.join(map(str, shape))} bytes, {len(data) - start} follow")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def images(data: bytes, where: str) -> NDArray[np.uint8]:
    """Images uint8 (N, H, W, C) from unpacked IDX bytes of three or four dimensions."""
    pixels = array(data, where)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape:
        raise InvalidData(f"{where}: images must have sizes (N, H, W) or (N, H, W, 1 or 3), none of them 0, got {pixels.shape}")
    return pixels


def labels(data: bytes, rows: int, where: str, classes: int | None = None) -> NDArray[np.int64]:
    """Labels int64 (rows,) from unpacked IDX bytes."""
    return label_rules.checked(array(data, where), rows, where, classes)


def source(path: Path, name: str = "", class_names: tuple[str, ...] = ()) -> Source:
    """Images from ``path``; labels from the file beside it whose name says labels-idx1 where this one says images-idx3."""
    if "labels" in path.name:
        raise InvalidData(f"{path} holds labels; pass the images file, its labels are found beside it")
    beside = labels_beside(path)

    def load() -> Found:
        pixels = images(unpacked(path), str(path))
        known = None if beside is None else labels(unpacked(beside), len(pixels), str(beside), len(class_names) or None)
        return Found(name or path.name, {"real": Rows(Stack(pixels, str(path)), known)}, class_names)

    files = [path] if beside is None else [path, beside]
    return Source(name or path.name, digest.of_parts((file.name, digest.of_file(file)) for file in files), load)


def labels_beside(path: Path) -> Path | None:
    """The labels file that belongs to an images file, packed or not; None if there is none."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1").removesuffix(".gz")
    if "images" not in path.name:
        return None
    candidates = (path.with_name(name + suffix) for suffix in ("", ".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def unpacked(path: Path) -> bytes:
    """The bytes of an IDX file, gunzipped if need be, reading no more than the header promises."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            head = file.read(4)
            head += file.read(4 * head[3]) if len(head) == 4 and head.startswith(MAGIC) else b""
            shape = struct.unpack(f">{(len(head) - 4) // 4}I", head[4:]) if len(head) > 4 and len(head) % 4 == 0 else ()
            promised = math.prod(shape)
            limits.check_ratio(f"{path}: the {promised} bytes that the IDX header promises", promised, path.stat().st_size)
            return head + file.read(promised) + file.read(1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidData(f"{path} is truncated or damaged: {error}") from None
