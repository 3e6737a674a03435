"""Data that a script already holds: arrays, tensors, torch data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganfast.data import labels as label_rules
from ganfast.data.dataset import Dataset
from ganfast.data.pictures import Decoded, Found, Rows, Stack, as_image
from ganfast.data.pixels import Look, fitted
from ganfast.data.progress import tracked
from ganfast.errors import InvalidData, InvalidType

if TYPE_CHECKING:
    from PIL.Image import Image


def from_array(array: NDArray[Any], labels: Any = None, name: str = "array") -> Found | Dataset:
    """Images (N, H, W, C), (N, C, H, W) or (N, H, W), uint8 or float in [0, 1]; or points float (N, D), which are final."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise InvalidData(
            f"{name}: expected images (N, H, W), (N, H, W, C) or (N, C, H, W), or points (N, D), at least one, "
            f"got shape {array.shape}"
        )
    if isinstance(labels, torch.Tensor):
        labels = as_numpy(labels)
    known = None if labels is None else label_rules.checked(labels, len(array), name)
    if array.ndim == 2:
        if array.dtype.kind != "f":
            raise InvalidData(
                f"{name}: points (N, D) must be of a float type, got {array.dtype}; images need a height and a width"
            )
        fields: dict[str, NDArray[Any]] = {"real": array.astype(np.float32)}
        return Dataset(name, {"real": fields if known is None else fields | {"labels": known}})
    pixels = channels_last(as_bytes(array, name), name)
    return Found(name, {"real": Rows(Stack(pixels, name), known)})


def as_bytes(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """uint8 as it is; floats in [0, 1] times 255, rounded. Anything else is refused, because its range would be a guess."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InvalidData(f"{where}: images must be uint8 or float in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise InvalidData(f"{where}: float images must lie in [0, 1], got {low:g} .. {high:g}; scale them or pass uint8")
    return np.round(array.astype(np.float32) * np.float32(255)).astype(np.uint8)


def channels_last(array: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, H, W, C). Channels are the axis of size 1 to 4, the last if both are."""
    if array.ndim == 3:
        return array[..., None]
    if array.shape[3] <= 4:
        return array
    if array.shape[1] <= 4:
        return array.transpose(0, 2, 3, 1)
    raise InvalidData(f"{where}: images must have 1 to 4 channels, first or last, got shape {array.shape}")


def as_numpy(value: Any) -> NDArray[Any]:
    """A numpy array of a tensor, wherever it lies, or of anything array-like."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray((value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy())
    return np.asarray(value)


def from_items(source: Any, look: Look) -> Found:
    """Every item of a map-style data set once: an image or (image, label); PIL, or an array or tensor as in :func:`as_bytes`.

    Items are resized as they come, so that memory holds the result alone.
    """
    name = type(source).__name__
    try:
        count = -1 if isinstance(source, torch.utils.data.IterableDataset) else len(source)
    except TypeError:
        count = -1
    if count < 0:
        raise InvalidType(f"{name} has no length; pass a map-style data set, whose items have numbers")
    if count == 0:
        raise InvalidData(f"{name} is empty; a data set needs at least one image")
    images, labels = [], []
    for i in tracked(range(count), count, "reading items"):
        item = source[i]
        where = f"{name}, item {i}"
        image, *rest = item if isinstance(item, (tuple, list)) else (item,)
        if len(rest) > 1:
            raise InvalidData(f"{where}: expected an image or (image, label), got a tuple of {len(rest) + 1}")
        labels += [as_numpy(label).tolist() for label in rest]
        images.append(_picture(image, where, look))
        if len(labels) not in (0, i + 1):
            raise InvalidData(f"{where}: some items have labels and some have none; all must agree")
    known = label_rules.checked(labels, count, name) if labels else None
    return Found(name, {"real": Rows(Decoded(images, name), known)}, _class_names(getattr(source, "classes", ()), known))


def _picture(image: Any, where: str, look: Look) -> Image:
    from PIL.Image import Image

    if not isinstance(image, Image):
        array = as_numpy(image)
        if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "uf":
            raise InvalidType(
                f"{where}: expected a PIL image or an array (H, W), (H, W, C) or (C, H, W), got {array.dtype} {array.shape}"
            )
        image = as_image(channels_last(as_bytes(array, where)[None], where)[0])
    try:
        return as_image(fitted(image, look))
    except (OSError, ValueError) as error:
        raise InvalidData(f"{where} cannot be read: {error}") from None


def _class_names(classes: Sequence[Any], labels: NDArray[np.int64] | None) -> tuple[str, ...]:
    if labels is None or len(classes) <= int(labels.max()) or not all(isinstance(name, str) for name in classes):
        return ()
    return tuple(classes)
