"""The one rule of what class labels are: whole numbers from 0, one per row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InvalidData

MAX_CLASSES = 65_536


def checked(labels: Any, rows: int, where: str, classes: int | None = None) -> NDArray[np.int64]:
    """``labels`` as int64 (rows,).

    ``where`` names the source in errors. ``classes`` bounds the labels where the number of classes is known. Raises
    :class:`~ganfast.errors.InvalidData` for a wrong count, a fraction, a negative number or one out of range.
    """
    try:
        array = np.asarray(labels)
    except ValueError:
        raise InvalidData(f"{where}: labels must be one whole number per image, got rows of different lengths") from None
    if array.ndim != 1:
        raise InvalidData(f"{where}: labels must have shape ({rows},), got {array.shape}")
    if len(array) != rows:
        raise InvalidData(f"{where}: {len(array)} labels do not fit {rows} images; there must be one label per image")
    if array.dtype.kind not in "iubf":
        raise InvalidData(f"{where}: labels must be whole numbers, got dtype {array.dtype}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        bad = int(np.flatnonzero(~(array == np.floor(array)) | ~np.isfinite(array))[0])
        raise InvalidData(f"{where}: labels must be whole numbers, label {bad} is {array[bad]}")
    highest = (classes or MAX_CLASSES) - 1
    outside = np.flatnonzero((array < 0) | (array > highest))
    if len(outside):
        bad = int(outside[0])
        raise InvalidData(f"{where}: labels must be from 0 to {highest}, label {bad} is {array[bad]}")
    return array.astype(np.int64)
