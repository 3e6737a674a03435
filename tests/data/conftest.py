"""Small data sets in the formats that are out there, written from the formats' descriptions and not with ganfast's code."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("GANFAST_CACHE", str(folder))
    yield folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """MNIST's pair of files in a folder: images (N, H, W), labels (N,); returns the images' path."""

    def write(folder: Path, images: np.ndarray, labels: np.ndarray | None, *, packed: bool = True, part: str = "train") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ".gz" if packed else ""
        files = {f"{part}-images-idx3-ubyte{suffix}": images}
        if labels is not None:
            files[f"{part}-labels-idx1-ubyte{suffix}"] = labels
        for name, array in files.items():
            data = idx_bytes(array)
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
        return folder / f"{part}-images-idx3-ubyte{suffix}"

    return write


@pytest.fixture
def write_png() -> Callable[[Path, Any], Path]:
    def write(path: Path, pixels: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
        return path

    return write


def png_bytes(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def write_zip() -> Callable[[Path, Mapping[str, Any]], Path]:
    """A zip of files: bytes as they are, arrays as PNG."""

    def write(path: Path, files: Mapping[str, Any]) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content if isinstance(content, (bytes, str)) else png_bytes(content))
        return path

    return write


@pytest.fixture
def write_tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    def write(path: Path, files: Mapping[str, bytes]) -> Path:
        with tarfile.open(path, "w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    return write


def cifar_pickle(pixels: np.ndarray, labels: list[int], key: str = "labels") -> bytes:
    """A batch as Python 2 wrote it: protocol 2, byte strings as keys and as an array's contents.

    Python 3 cannot write such byte strings, so the opcodes are written here by hand: BINSTRING (T) with its length, then the
    text.
    """

    def text(data: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(data)) + data

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    shape = b"(" + b"".join(number(n) for n in pixels.shape) + b"t"
    array += b"(" + number(1) + shape + dtype + b"I00\n" + text(pixels.tobytes()) + b"tb"
    listed = b"(" + b"".join(number(label) for label in labels) + b"l"
    return b"\x80\x02(" + text(b"data") + array + text(key.encode()) + listed + b"d."


@pytest.fixture
def cifar_batch() -> Callable[..., bytes]:
    return cifar_pickle


@pytest.fixture
def cifar_meta() -> Callable[..., bytes]:
    def meta(names: list[str], key: str = "label_names") -> bytes:
        return pickle.dumps({key: names}, protocol=2)

    return meta
