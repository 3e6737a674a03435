"""Arrays in numpy's own files, ``.npz`` and ``.npy``; never a pickle."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import limits
from ganfast.data.arrays import from_array
from ganfast.data.dataset import Dataset
from ganfast.data.pictures import Found
from ganfast.errors import InvalidData

IMAGES = ("images", "image", "x", "x_train", "train_images", "data", "samples", "points", "arr_0")
LABELS = ("labels", "label", "y", "y_train", "train_labels", "targets", "arr_1")
BROKEN = (
    ValueError,
    EOFError,
    OSError,
    KeyError,
    SyntaxError,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


def read_npz(path: Path) -> Found | Dataset:
    """Images or points under a usual name or as the only array, labels likewise; see :func:`ganfast.data.arrays.from_array`."""
    try:
        with zipfile.ZipFile(path) as archive:
            limits.check_zip(path, archive, of_arrays=True)
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = _chosen(list(arrays.files), path)
            pixels = arrays[images]
            known = None if labels is None else arrays[labels]
    except InvalidData:
        raise
    except BROKEN as error:
        raise InvalidData(f"{path} cannot be read as npz: {error}") from None
    return _of(path, pixels, known)


def read_npy(path: Path) -> Found | Dataset:
    """Images or points in one array."""
    try:
        pixels = np.load(path, allow_pickle=False, mmap_mode="r")
    except BROKEN as error:
        raise InvalidData(f"{path} cannot be read as npy: {error}") from None
    return _of(path, pixels, None)


def _of(path: Path, pixels: NDArray[Any], labels: NDArray[Any] | None) -> Found | Dataset:
    found = from_array(pixels, labels, str(path))
    if isinstance(found, Dataset):
        return Dataset(path.name, found.groups)
    return Found(path.name, found.groups)


def _chosen(names: list[str], path: Path) -> tuple[str, str | None]:
    lower: Mapping[str, str] = {name.lower(): name for name in names}
    labels = next((lower[name] for name in LABELS if name in lower), None)
    images = next((lower[name] for name in IMAGES if name in lower), None)
    rest = [name for name in names if name != labels]
    if images is None and len(rest) == 1:
        images = rest[0]
    if images is None:
        listed = ", ".join(names) or "no arrays"
        raise InvalidData(f"{path} holds {listed}; the images must be called {', '.join(IMAGES)} or be the only array")
    return images, labels
