"""What a data set is once it is open: named arrays, in groups that are drawn independently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import digest, labels
from ganfast.errors import InvalidData

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Dataset:
    """Images or points in memory or in a memory map, read-only.

    ``groups`` holds independent sets of rows. An ordinary data set has the one group ``real`` with a field ``real`` and, where
    the classes are known, a field ``labels``; an unpaired pair has the groups ``a`` and ``b``, whose lengths may differ.
    A field is images uint8 (N, H, W, C) with H = W and C of 1 or 3, points float32 (N, D), or labels int64 (N,). All image
    fields agree in size and channels. Field names are unique across groups. ``left_out`` says which images of the source could
    not be read, if any.

    Raises :class:`~ganfast.errors.InvalidData` if the arrays are none of these or do not fit each other.
    """

    name: str
    groups: Mapping[str, Arrays]
    class_names: tuple[str, ...] = ()
    left_out: str = ""

    def __post_init__(self) -> None:
        names = [field for group in self.groups.values() for field in group]
        if not names or len(set(names)) != len(names):
            raise InvalidData(f"{self.name}: fields must be named once each, got {', '.join(names) or 'none'}")
        known = len(self.class_names) or None
        groups: dict[str, dict[str, NDArray[Any]]] = {}
        for group, fields in self.groups.items():
            rows = {field: len(array) for field, array in fields.items()}
            if "labels" in fields and len(fields) > 1:
                count = next(n for field, n in rows.items() if field != "labels")
                labels.checked(fields["labels"], count, self.name, known)
            if len(set(rows.values())) != 1 or 0 in rows.values():
                raise InvalidData(f"{self.name}: the fields of a group must have equally many rows, at least one, got {rows}")
            groups[group] = {field: _readonly(self.name, field, array) for field, array in fields.items()}
        object.__setattr__(self, "groups", groups)
        shapes = {array.shape[1:] for array in self._all.values() if array.dtype == np.uint8}
        if len(shapes) > 1:
            raise InvalidData(f"{self.name}: all images must have one size and one number of channels, got {sorted(shapes)}")

    @cached_property
    def _all(self) -> dict[str, NDArray[Any]]:
        return {field: array for group in self.groups.values() for field, array in group.items()}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of everything that a batch can hold."""
        return tuple(self._all)

    @cached_property
    def classes(self) -> int:
        """Number of classes; 0 if there are no labels."""
        if "labels" not in self._all:
            return 0
        return max(len(self.class_names), int(self._all["labels"].max()) + 1)

    @property
    def _images(self) -> NDArray[Any] | None:
        return next((array for array in self._all.values() if array.dtype == np.uint8), None)

    @property
    def image_size(self) -> int:
        """Height and width in pixels; 0 for points."""
        return 0 if self._images is None else int(self._images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour; 0 for points."""
        return 0 if self._images is None else int(self._images.shape[3])

    @property
    def points(self) -> int:
        """Dimension of the points; 0 for images."""
        return next((int(array.shape[1]) for array in self._all.values() if array.dtype == np.float32), 0)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over every field's name, dtype, shape and bytes, see :mod:`ganfast.data.digest`."""
        return digest.of_parts(
            (f"{group}/{field} {array.dtype.str} {array.shape}", digest.of_array(array))
            for group, fields in self.groups.items()
            for field, array in fields.items()
        )

    def describe(self) -> dict[str, Any]:
        """Everything that identifies the data set, ready for JSON."""
        return {
            "name": self.name,
            "rows": {group: len(next(iter(fields.values()))) for group, fields in self.groups.items()},
            "fields": {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in self._all.items()},
            "image_size": self.image_size,
            "channels": self.channels,
            "points": self.points,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "digest": self.digest,
        }

    def __len__(self) -> int:
        """Rows of the longest group: an epoch shows each of them at least once."""
        return max(len(array) for array in self._all.values())


def _readonly(name: str, field: str, array: NDArray[Any]) -> NDArray[Any]:
    match array.dtype, array.shape:
        case np.dtype(kind="u", itemsize=1), (_, height, width, 1 | 3) if height == width > 0:
            pass
        case np.dtype(kind="f", itemsize=4), (_, width) if width > 0:
            if not np.isfinite(array).all():
                raise InvalidData(f"{name}: points must be finite, field {field!r} holds NaN or Inf")
        case np.dtype(kind="i", itemsize=8), (_,):
            pass
        case dtype, shape:
            raise InvalidData(
                f"{name}: field {field!r} must be images uint8 (N, S, S, 1 or 3), points float32 (N, D) or labels int64 (N,), "
                f"got {dtype} {shape}"
            )
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
