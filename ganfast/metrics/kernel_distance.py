r"""Kernel (Inception) Distance: the squared maximum mean discrepancy of features (Binkowski et al. 2018, section 4).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / D + 1)^3

estimated without bias (Gretton et al. 2012, equation 3): pairs of a sample with itself are left out. So it is around zero, and at
times below, for samples of one distribution. KID is the mean over small subsets, with the deviation among these.

All in float64, in blocks. With w a subset's indicator, its sum over pairs is w^T K w. Where few samples serve many subsets, K is
formed once for all of them, and otherwise the kernel of each subset; both give the same numbers but for rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.draws import Seed, permutations
from ganfast.metrics.rows import both

_BLOCK = 1024  # rows and columns of the kernel that are there at a time: 8 MB


def kernel_distance(x: Array, y: Array, *, subsets: int = 100, subset_size: int = 1000, seed: Seed = 2020) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased MMD^2 of features x (N, D) and y (M, D).

    Each subset draws from x, then from y, without replacement. torch-fidelity's numbers are those of x its input 1, the
    generated set; clean-fid's after ``numpy.random.seed(seed)`` are those of x its second argument, with ``subset_size`` the
    smaller of 1000, N and M; torchmetrics' those of x the real features, with ``seed=torch.default_generator``.

    Raises InvalidType: no real numbers. Raises InvalidValue: fewer than two samples, widths that differ, NaN or Inf, a subset
    larger than a set, numbers too large to cube.
    """
    one, other = both(x, y)
    count, size = whole(subsets, "subsets"), whole(subset_size, "subset_size", least=2)
    if size > min(len(one), len(other)):
        raise InvalidValue(
            f"a subset of {size} is larger than a set: x has {len(one)} samples and y {len(other)}; "
            f"give more samples, or subset_size={min(len(one), len(other))} or less"
        )
    draw = permutations(seed)
    pairs = [[draw(len(side))[:size].to(one.device) for side in (one, other)] for _ in range(count)]
    width = one.shape[1]
    at_once = ((len(one) ** 2 + len(other) ** 2) / 2 + len(one) * len(other)) * (width + count)
    if at_once < 2 * count * size**2 * width:
        masks = [one.new_zeros(len(side), count, dtype=torch.float64) for side in (one, other)]
        for s, drawn in enumerate(pairs):
            for mask, which in zip(masks, drawn, strict=True):
                mask[which, s] = 1
        distances = _mmd(one, other, *masks)
    else:
        distances = torch.cat([_mmd_of_all(one[i], other[j]) for i, j in pairs])
    mean, deviation = distances.mean().item(), distances.std(correction=0).item()
    return _finite(mean), deviation


def _mmd_of_all(x: Tensor, y: Tensor) -> Tensor:
    return _mmd(x, y, *(side.new_ones(len(side), 1, dtype=torch.float64) for side in (x, y)))


def _mmd(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """The estimate for each subset (S,), given by indicators (N, S) and (M, S)."""
    n, m = in_x.sum(dim=0), in_y.sum(dim=0)
    within = _within(x, in_x) / (n * (n - 1)) + _within(y, in_y) / (m * (m - 1))
    return within - 2 * _between(x, y, in_x, in_y) / (n * m)


def _within(x: Tensor, chosen: Tensor) -> Tensor:
    """The sum of k over ordered pairs of two different samples of a subset: twice the kernel's upper triangle."""
    total = chosen.new_zeros(chosen.shape[1])
    for start in range(0, len(x), _BLOCK):
        rows, weights = x[start : start + _BLOCK].double(), chosen[start : start + _BLOCK]
        total += torch.einsum("is,is->s", weights, _kernel(rows, rows).fill_diagonal_(0) @ weights)
        total += 2 * _between(rows, x[start + _BLOCK :], weights, chosen[start + _BLOCK :])
    return total


def _between(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """The sum of k over a subset's pairs of a row of x and a row of y."""
    total = in_x.new_zeros(in_x.shape[1])
    for i, p in zip(x.split(_BLOCK), in_x.split(_BLOCK), strict=True):
        rows = i.double()
        for j, q in zip(y.split(_BLOCK), in_y.split(_BLOCK), strict=True):
            total += torch.einsum("is,is->s", p, _kernel(rows, j.double()) @ q)
    return total


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = (x @ y.T).div_(x.shape[1]).add_(1)
    return base.square().mul_(base)


def _finite(distance: float) -> float:
    if not math.isfinite(distance):
        raise InvalidValue(f"the distance of x and y is {distance}: numbers too large to cube in float64")
    return distance
