r"""Maximum mean discrepancy (Gretton et al. 2012): how far apart the means of two sets are in the space of a kernel k, squared.

    MMD^2 = E k(x, x') - 2 E k(x, y) + E k(y, y')

Unbiased (equation 3) the means over one set leave out a sample's kernel with itself, and the result may fall below zero; biased
(equation 5) they do not. With k(x, y) = -|x - y| it is the energy distance (Szekely and Rizzo 2013; Sejdinovic et al. 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.rows import both, squared_distances

# of rows (N, D) and (M, D) in float64, the matrix (N, M)
Kernel = Callable[[Tensor, Tensor], Tensor]

_TILE = 2048  # rows and columns of a kernel's matrix that are there at a time: 32 MB
_MARKS = 1 << 24  # of the permutations that are tried at a time: 128 MB
_MEDIAN_OF = 2000  # samples whose distances the median is taken of


def gaussian_kernel(*bandwidths: float) -> Kernel:
    """The mean over the bandwidths of exp(-|x - y|^2 / 2 bandwidth^2)."""
    return _of_distances(lambda squares, bandwidth: (squares * (-0.5 / bandwidth**2)).exp_(), bandwidths, "bandwidth")


def rational_quadratic_kernel(*alphas: float) -> Kernel:
    """The mean over the alphas of (1 + |x - y|^2 / 2 alpha)^-alpha; Binkowski et al. 2018 take the sum over 0.2, 0.5, 1, 2, 5."""
    return _of_distances(lambda squares, alpha: (squares * (0.5 / alpha)).add_(1).pow_(-alpha), alphas, "alpha")


def energy_kernel() -> Kernel:
    """-|x - y|: the discrepancy is the energy distance."""
    return lambda x, y: squared_distances(x, y).sqrt_().neg_()


def polynomial_kernel(degree: int = 3, *, gamma: float | None = None, constant: float = 1.0) -> Kernel:
    """(gamma <x, y> + constant)^degree; gamma is 1/D unless given, as in KID."""
    return lambda x, y: (x @ y.T).mul_(1 / x.shape[1] if gamma is None else gamma).add_(constant).pow_(degree)


def median_distance(x: Array, y: Array, *, seed: int = 0) -> float:
    """The median distance of samples from both sets, the usual bandwidth (Gretton et al. 2012, section 8).

    Of 2,000 samples drawn from ``seed`` where there are more. Raises InvalidValue where it is zero, for more than half of the
    pairs are equal.
    """
    return _median(*both(x, y), seed)


def mmd(x: Array, y: Array, *, kernel: Kernel | None = None, unbiased: bool = True) -> float:
    """MMD^2 of features x (N, D) and y (M, D), summed in float64 and in tiles; near zero for one distribution.

    The ``kernel`` is Gaussian with the median distance for a bandwidth unless given. Raises InvalidType or InvalidValue that
    names the side: fewer than two samples, NaN or Inf, widths that differ; numbers too large for the kernel.
    """
    one, other = both(x, y)
    kernel = kernel or gaussian_kernel(_median(one, other, 0))
    n, m = len(one), len(other)
    within = [_mean_within(*_sums(kernel, side), len(side), unbiased) for side in (one, other)]
    across = torch.stack([kernel(left, right).sum() for left in _tiles(one) for right in _tiles(other)]).sum() / (n * m)
    return _finite(within[0] + within[1] - 2 * across)


class PermutationTest(NamedTuple):
    """MMD^2, and the share of random divisions of all samples that come out as far apart, the actual one counted among them."""

    mmd: float
    p_value: float


def mmd_test(
    x: Array, y: Array, *, kernel: Kernel | None = None, unbiased: bool = True, permutations: int = 1000, seed: int = 0
) -> PermutationTest:
    """Whether x (N, D) and y (M, D) may be of one distribution: a small p-value says that they are not.

    All samples are divided anew into N and M, ``permutations`` times, drawn from ``seed``. Otherwise as :func:`mmd`.
    """
    count = whole(permutations, "permutations")
    one, other = both(x, y)
    kernel = kernel or gaussian_kernel(_median(one, other, 0))
    pooled = torch.cat([one, other])
    n, total = len(one), len(one) + len(other)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, count, step := max(1, _MARKS // total)):
        orders = [torch.randperm(total, generator=generator) for _ in range(min(step, count - start))]
        marks = torch.zeros(total, 1 + len(orders), dtype=torch.float64)
        marks[:n, 0] = 1  # as they are
        for column, order in enumerate(orders, 1):
            marks[order[:n], column] = 1
        found.append(_divided(kernel, pooled, marks.to(one.device), n, unbiased))
    actual = found[0][0]
    tried = torch.cat([values[1:] for values in found])
    # what is equal must not count as less far apart for being summed in another order
    some = pooled[:_TILE].double()
    rounding = 1e-12 * kernel(some, some).abs().mean()
    return PermutationTest(_finite(actual), (1 + int((tried >= actual - rounding).sum())) / (1 + count))


def _divided(kernel: Kernel, pooled: Tensor, marks: Tensor, n: int, unbiased: bool) -> Tensor:
    """MMD^2 for each column of marks (N + M, K), which are 1 where a sample counts as of x and 0 where of y; (K,)."""
    m = len(pooled) - n
    in_x = torch.zeros(marks.shape[1], dtype=torch.float64, device=marks.device)
    from_x, itself_x, everything, itself = in_x.clone(), in_x.clone(), 0.0, 0.0
    for left, left_marks in zip(_tiles(pooled), marks.split(_TILE), strict=True):
        itself_left = kernel(left, left).diagonal()
        itself_x += itself_left @ left_marks
        itself += itself_left.sum().item()
        for right, right_marks in zip(_tiles(pooled), marks.split(_TILE), strict=True):
            matrix = kernel(left, right)
            in_x += ((matrix @ right_marks) * left_marks).sum(dim=0)
            from_x += matrix.sum(dim=1) @ left_marks
            everything += matrix.sum().item()
    across = from_x - in_x
    in_y = everything - in_x - 2 * across
    within = _mean_within(in_x, itself_x, n, unbiased) + _mean_within(in_y, itself - itself_x, m, unbiased)
    return within - 2 * across / (n * m)


def _sums(kernel: Kernel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of a set's kernel matrix and of its diagonal; what is below the diagonal is its mirror image."""
    total, itself = torch.zeros(2, dtype=torch.float64, device=rows.device)
    for index, left in enumerate(_tiles(rows)):
        for right in _tiles(rows[index * _TILE + len(left) :]):
            total += 2 * kernel(left, right).sum()
        matrix = kernel(left, left)
        total += matrix.sum()
        itself += matrix.diagonal().sum()
    return total, itself


def _mean_within(total: Tensor, itself: Tensor, count: int, unbiased: bool) -> Tensor:
    return (total - itself) / (count * (count - 1)) if unbiased else total / count**2


def _finite(discrepancy: Tensor) -> float:
    if not discrepancy.isfinite():
        raise InvalidValue(f"the discrepancy of x and y is {discrepancy.item()}: numbers too large for the kernel")
    return discrepancy.item()


def _tiles(rows: Tensor) -> Iterator[Tensor]:
    return (part.double() for part in rows.split(_TILE)) if len(rows) else iter(())


def _median(x: Tensor, y: Tensor, seed: int) -> float:
    chosen = torch.randperm(len(x) + len(y), generator=torch.Generator().manual_seed(seed))[:_MEDIAN_OF].to(x.device)
    pooled = torch.cat([x[chosen[chosen < len(x)]], y[chosen[chosen >= len(x)] - len(x)]])
    lines, columns = torch.triu_indices(len(pooled), len(pooled), 1, device=pooled.device)
    median = squared_distances(pooled, pooled)[lines, columns].median().sqrt().item()
    if not median > 0:
        raise InvalidValue("the median distance is 0, for more than half of the samples are equal: give a kernel")
    return median


def _of_distances(formula: Callable[[Tensor, float], Tensor], widths: tuple[float, ...], name: str) -> Kernel:
    if not widths or not all(0 < width < math.inf for width in widths):
        raise InvalidValue(f"expected at least one {name}, above 0, got {widths}")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = squared_distances(x, y)
        return sum((formula(squares, width) for width in widths), torch.zeros_like(squares)) / len(widths)

    return kernel
