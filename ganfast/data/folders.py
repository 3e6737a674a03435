"""Folders and zip archives of image files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ganfast.data import digest, idx, limits
from ganfast.data.layout import LABEL_FILE, arranged, is_image
from ganfast.data.pictures import Files, Found, Pictures, Rows, Source, Zipped
from ganfast.errors import InvalidData

IDX_TRAIN = ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte", "train-images.idx3-ubyte")


def folder(path: Path) -> Source:
    """An image folder, see :func:`ganfast.data.layout.arranged`; or one of MNIST-like IDX files, whose training part is read."""
    names = _walk(path)
    images = [name for name in names if is_image(name)]
    packed = next((name for name in IDX_TRAIN if name in names), None)
    if not images and packed is not None:
        return idx.source(path / packed)
    labels = [name for name in names if name.rpartition("/")[2] == LABEL_FILE]

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise InvalidData(f"{path / name} cannot be read: {error.strerror}") from None

    def load() -> Found:
        return _found(path, names, read, lambda chosen: Files(path, chosen))

    return Source(path.name, digest.of_tree(path, sorted(images + labels)), load)


def archive(path: Path) -> Source:
    """A zip archive laid out like an image folder, read in place and never extracted."""
    return Source(path.name, digest.of_file(path), lambda: _read_zip(path))


def _read_zip(path: Path) -> Found:
    try:
        opened = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InvalidData(f"{path} is truncated or no zip archive: {error}") from None
    limits.check_zip(path, opened)
    names = [entry.filename for entry in opened.infolist() if not entry.is_dir()]

    def read(name: str) -> bytes:
        try:
            return opened.read(name)
        except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError) as error:
            raise InvalidData(f"{path}: {name} cannot be read: {error}") from None

    return _found(path, names, read, lambda chosen: Zipped(path, opened, chosen))


def _found(
    path: Path, names: Sequence[str], read: Callable[[str], bytes], pictures: Callable[[Sequence[str]], Pictures]
) -> Found:
    sides, classes = arranged(names, read, str(path))
    return Found(path.name, {group: Rows(pictures(side.names), side.labels) for group, side in sides.items()}, classes)


def _walk(root: Path) -> list[str]:
    """Relative names of all files, links followed, each folder entered once."""
    names: list[str] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise InvalidData(f"{error.filename} cannot be listed: {error.strerror}")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        relative = Path(folder).relative_to(root)
        names += [(relative / file).as_posix() for file in files]
    return names
