"""From whatever names or holds data to a :class:`~ganfast.data.Dataset`."""

from __future__ import annotations

import gzip
import os
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganfast.data import arrays, cifar, digest, fashion, folders, idx, npz
from ganfast.data import cache as caching
from ganfast.data.dataset import Dataset
from ganfast.data.decode import Decoding, left_out, settled
from ganfast.data.pictures import Found, Source
from ganfast.data.pixels import Look
from ganfast.data.toy import ROWS, TOYS, toy
from ganfast.errors import InvalidData, InvalidType, InvalidValue, NotFound, near


def names() -> list[str]:
    """The data sets that have a name."""
    return ["fashion-mnist", "fashion-mnist-10k", *(f"toy:{name}" for name in TOYS)]


def open_dataset(
    source: Any,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    filter: str = "lanczos",
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Opens data of any kind that ganfast knows.

    ``source`` is

    - a name from :func:`names`;
    - a path: a folder of images (sub-folders are classes; ``trainA`` and ``trainB`` an unpaired pair), a zip archive of the same,
      also with StyleGAN's ``dataset.json``, npz, npy, IDX (labels are found beside it), CIFAR's python archive;
    - an array or tensor: images uint8 or float in [0, 1], (N, H, W), (N, H, W, C) or (N, C, H, W), or points float (N, D);
      or a tuple of one and labels (N,);
    - a map-style torch data set, or a list, of images or (image, label);
    - a :class:`~ganfast.data.Dataset`, returned as it is.

    Images come out square, uint8 (N, S, S, C). Without ``image_size`` they must be square and of one size already; with it they
    are cropped to their central square and resized to ``image_size`` pixels by the Pillow filter ``filter`` (nearest, box,
    bilinear, hamming, bicubic, lanczos). ``channels`` 1 or 3 converts; by default a set that is all grey stays grey.
    Transparency is composited on white.

    Files are decoded once, into a folder below ``cache`` (by default $GANFAST_CACHE, else the user's cache folder), and from then
    on memory-mapped; if it cannot be written, data stay in memory, with a warning. Up to one image in a hundred may be
    unreadable; they are left out, with a warning at every opening.

    Raises :class:`~ganfast.errors.NotFound`, :class:`~ganfast.errors.InvalidData`, :class:`~ganfast.errors.InvalidValue` or
    :class:`~ganfast.errors.InvalidType`, one line that names the file or value and says what would be right.
    """
    look = Look(image_size, channels, filter)
    found = _find(source, look, cache)
    dataset = _cached(found, look, cache) if isinstance(found, Source) else _finished(found, look, in_memory)
    if dataset.left_out and dataset is not source:
        warnings.warn(dataset.left_out, stacklevel=2)
    return dataset


def _cached(source: Source, look: Look, cache: str | os.PathLike[str] | None) -> Dataset:
    try:
        entry = caching.Entry(caching.folder(cache), {"source": source.digest, "name": source.name, **asdict(look)})
        return entry.open() or entry.build(lambda path: _finished(source.load(), look, on_disk(path)))
    except NotFound:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        warnings.warn(f"the cache cannot be written ({reason}); the data stay in memory", stacklevel=3)
        return _finished(source.load(), look, in_memory)


def _find(source: Any, look: Look, cache: str | os.PathLike[str] | None) -> Source | Found | Dataset:
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str) and source in names():
        return _named(source, cache)
    if isinstance(source, (str, os.PathLike)):
        return _at(Path(os.path.expanduser(source)), str(source))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return arrays.from_array(arrays.as_numpy(source))
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], (np.ndarray, torch.Tensor)):
        return arrays.from_array(arrays.as_numpy(source[0]), source[1])
    if hasattr(source, "__getitem__") and not isinstance(source, (tuple, Mapping)):
        return arrays.from_items(source, look)
    raise InvalidType(
        "expected a name, a path, an array, a tensor, (array, labels), a torch data set or a Dataset, "
        f"got {type(source).__name__}"
    )


def _named(name: str, cache: str | os.PathLike[str] | None) -> Source | Found | Dataset:
    if name == "fashion-mnist-10k":
        return fashion.embedded()
    if name == "fashion-mnist":
        return fashion.train(cache)
    return Dataset(name, {"real": {"real": toy(name.removeprefix("toy:"), ROWS)}})


def _at(path: Path, given: str) -> Source:
    try:
        path.stat()
        path = path if path.name not in ("", "..") else path.resolve()  # what names the data set
        return folders.folder(path) if path.is_dir() else _file(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.sep in given or path.suffix:
            raise NotFound(f"there is no file or folder {given}") from None
        raise InvalidValue(f"no data set or path is called {given!r}{near(given, names())}") from None
    except OSError as error:
        raise InvalidData(f"{error.filename or path} cannot be read: {error.strerror}") from None


def _file(path: Path) -> Source:
    """By what the file holds rather than by what it is called."""
    with open(path, "rb") as file:
        head = file.read(8)
    if path.suffix.lower() == ".npz":
        return Source(path.name, digest.of_file(path), lambda: npz.read_npz(path))
    if head.startswith(b"PK") or path.suffix.lower() == ".zip":
        return folders.archive(path)
    if head.startswith(b"\x93NUMPY"):
        return Source(path.name, digest.of_file(path), lambda: npz.read_npy(path))
    if head.startswith(b"\x1f\x8b"):
        head = _unpacked_head(path)
    if head.startswith(idx.MAGIC):
        return idx.source(path)
    if _is_tar(path):
        return Source(path.name, digest.of_file(path), lambda: cifar.read(path))
    raise InvalidData(
        f"{path} is nothing that can be opened as a data set; known are an image folder, zip, npz, npy, IDX (also .gz) "
        "and CIFAR's tar.gz"
    )


def _unpacked_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(8)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} is truncated or damaged: {error}") from None


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except (OSError, EOFError, zlib.error):
        return False


Store = Callable[[str, Iterable[NDArray[np.uint8]]], NDArray[np.uint8]]


def in_memory(field: str, blocks: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate(list(blocks))


def on_disk(path: Path) -> Store:
    return lambda field, blocks: caching.write_rows(path / f"{field}.npy", blocks)


def _finished(found: Found | Dataset, look: Look, store: Store) -> Dataset:
    """The data set that ``found`` becomes under ``look``, its images where ``store`` puts them."""
    if isinstance(found, Dataset):
        return _as_it_is(found, look)
    look = settled(found.groups, look)
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    unreadable: list[str] = []
    for group, rows in found.groups.items():
        decoding = Decoding(rows.pictures, look)
        groups[group] = {group: store(group, decoding)}
        unreadable += decoding.unreadable
        if rows.labels is not None:
            groups[group]["labels"] = rows.labels[decoding.kept]
    total = sum(len(rows.pictures) for rows in found.groups.values())
    return Dataset(found.name, groups, found.class_names, left_out(found.name, unreadable, total))


def _as_it_is(dataset: Dataset, look: Look) -> Dataset:
    """Open data and points are not converted, so what is asked for must be what is there."""
    for what, wanted, have in (
        ("image_size", look.image_size, dataset.image_size),
        ("channels", look.channels, dataset.channels),
    ):
        if wanted is not None and dataset.points:
            raise InvalidValue(f"{dataset.name} holds points, which have no {what}; leave it out")
        if wanted not in (None, have):
            raise InvalidValue(f"{dataset.name} is open already with {what} {have}; open its source with {what}={wanted}")
    return dataset
