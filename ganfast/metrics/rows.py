"""Rows of features as a metric takes them: checked, in pairs of one width, and compared a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.arrays import Array, as_floats, check_numbers, tensor

_SAMPLE = 512  # rows that a median is taken of
_CELLS = 1 << 22  # of a matrix that is there at a time: 32 MB in float64


def rows(features: Array, name: str, *, least: int = 2) -> Tensor:
    """Features (N, D), N >= ``least``, in a floating type. Raises InvalidType or InvalidValue that calls them ``name``."""
    values = tensor(features, name)
    if values.dim() != 2 or values.shape[1] == 0:
        raise InvalidValue(f"{name}: expected features (N, D), got {tuple(values.shape)}")
    if len(values) < least:
        raise InvalidValue(f"{name}: expected at least {least} sample{'s' * (least > 1)}, got {len(values)}")
    values = as_floats(values)
    check_numbers(values, name)
    return values


def both(x: Array, y: Array, x_name: str = "x", y_name: str = "y", *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features (N, D) and (M, D), on the device of the first; otherwise as :func:`rows`."""
    one, other = rows(x, x_name, least=least), rows(y, y_name, least=least)
    same_width(one, other, x_name, y_name)
    return one, other.to(one.device)


def same_width(x: Tensor, y: Tensor, x_name: str, y_name: str) -> None:
    """Raises InvalidValue that names both where they differ."""
    if x.shape[1] != y.shape[1]:
        raise InvalidValue(f"expected as many features on both sides, got {x.shape[1]} in {x_name} and {y.shape[1]} in {y_name}")


def pixels(images: Array, name: str) -> Tensor:
    """uint8 images (N, H, W, 1 or 3) as a tensor. Raises InvalidType or InvalidValue that calls them ``name``."""
    values = tensor(images, name)
    if values.dtype != torch.uint8:
        raise InvalidType(f"{name}: expected uint8 images (N, H, W, C), got {values.dtype}")
    if values.dim() != 4 or values.shape[3] not in (1, 3) or 0 in values.shape:
        raise InvalidValue(
            f"{name}: expected images (N, H, W, C) with C 1 or 3 and N, H, W at least 1, got {tuple(values.shape)}"
        )
    return values


def is_pictures(array: Array) -> bool:
    """Whether these are uint8 images, and not features."""
    return array.dtype in (torch.uint8, np.uint8) and array.ndim == 4


def blocks(count: int, against: int) -> Iterator[slice]:
    """Slices of ``count`` rows, so many that a matrix of theirs against ``against`` columns stays within 32 MB."""
    step = max(1, _CELLS // max(1, against))
    for start in range(0, count, step):
        yield slice(start, start + step)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (N, M) of rows (N, D) and (M, D), in float64.

    By way of products, which is the fast one: off by 1e-16 of the rows' squared distance from the median of y.
    """
    return bounded_squared_distances(x, y)[0]


def bounded_squared_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`squared_distances`, and (N, 1) by how much none of a row's is off: each of D products and sums rounds once."""
    x, y = x.double(), y.double()
    # near to most rows: one outlier would take the mean, and the digits of all others, with it
    middle = y[:: -(-len(y) // _SAMPLE)].median(dim=0).values
    x, y = x - middle, y - middle
    norms, others = x.square().sum(dim=1, keepdim=True), y.square().sum(dim=1)
    squares = torch.addmm(others, x, y.T, alpha=-2).add_(norms).clamp_(min=0)
    return squares, 2 * (x.shape[1] + 8) * torch.finfo(torch.float64).eps * (norms + others.amax())
