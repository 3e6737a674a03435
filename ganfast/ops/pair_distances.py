r"""Distances of chosen pairs of rows, each from its own differences.

    out_p = |x_i(p) - y_j(p)|

x (N, D) and y (M, D) in one floating type, i and j (P,) int64; out (P,) in float64, in which everything is computed. A pair has
the same bits whatever the other pairs are, with any number of threads, and with its two rows exchanged: (a - b)^2 is (b - a)^2,
and its terms are added up in an order that D alone decides. So equal distances can be told from nearly equal ones, which products
of rows, |x|^2 + |y|^2 - 2 x . y, cannot do. NaN and Inf flow as they do through a difference.

A pair's two rows must be read, and little else: the kernel of the CPU reads them where they lie, one parallel loop for all pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganfast.ops.library import register

_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 24}  # numbers that are widened at a time, on the CPU what a second-level cache holds


def pair_distances_reference(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Distances (P,) in float64 of rows i of x (N, D) and j of y (M, D)."""
    out = _fake(x, y, i, j)
    for rows, side in ((i, x), (j, y)):
        if len(rows) and (rows.min() < 0 or rows.max() >= len(side)):
            raise IndexError(f"expected i and j that are rows of x and of y: an index is out of range {len(side)}")
    step = max(1, _AT_ONCE[x.device.type] // max(1, x.shape[1]))
    for start in range(0, len(i), step):
        pairs = slice(start, start + step)
        ours, theirs = x[i[pairs]].double()[:, None], y[j[pairs]].double()[:, None]
        out[pairs] = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").view(-1)
    return out


def _fake(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(f"expected x (N, D) and y (M, D) of one floating type, got {_kind(x)} and {_kind(y)}")
    if i.dim() != 1 or i.shape != j.shape or not i.dtype == j.dtype == torch.int64:
        raise ValueError(f"expected i and j (P,) in int64, got {_kind(i)} and {_kind(j)}")
    return x.new_empty(len(i), dtype=torch.float64)


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} in {tensor.dtype}"


pair_distances = register(
    "pair_distances(Tensor x, Tensor y, Tensor i, Tensor j) -> Tensor", reference=pair_distances_reference, fake=_fake
)
