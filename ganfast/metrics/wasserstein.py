r"""Wasserstein distance (Kantorovich 1942): what it costs to carry the one set of samples over to the other.

    W_p(x, y)^p = min over plans of sum_ij plan_ij |x_i - y_j|^p,  the plan's rows and columns summing to the samples' weights

In one dimension the best plan keeps the order, and W_p^p is the integral of |Q_x(u) - Q_y(u)|^p over the quantiles u. The sliced
distance averages that over projections on random directions (Rabin et al. 2012, equation 8):

    SW_p(x, y)^p = mean over directions of W_p(x direction, y direction)^p

All distances here are roots, in the features' unit, of p >= 1.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ganfast.errors import InvalidValue, Unavailable, whole
from ganfast.metrics.arrays import Array, check_numbers, tensor
from ganfast.metrics.rows import blocks, both, squared_distances

LARGEST = 5_000  # samples a side of the exact distance: a matrix of 200 MB, and half a minute
_UNEVEN = 250_000  # entries of a plan where the sides have unlike counts: a linear program of as many unknowns
_PROJECTED = 1 << 24  # projections that are sorted at a time: 128 MB, and some copies of it


def wasserstein_1d(
    x: Array, y: Array, *, p: float = 1.0, x_weights: Array | None = None, y_weights: Array | None = None
) -> float:
    """Exact W_p of two sets of numbers x (N,) and y (M,), with weights (N,) and (M,) where these are given.

    Weights count by their share in their sum. Raises InvalidValue that names the argument: no numbers, NaN or Inf, weights that
    do not fit, are negative or all zero; p below 1.
    """
    power = _power(p)
    one, one_steps = _quantiles(x, x_weights, "x")
    other, other_steps = _quantiles(y, y_weights, "y")
    other, other_steps = other.to(one.device), other_steps.to(one.device)
    levels = torch.cat([one_steps, other_steps]).sort().values
    shares = levels.diff(prepend=levels.new_zeros(1))
    # rounding must not step over the last one
    places = [torch.searchsorted(steps, levels).clamp(max=len(steps) - 1) for steps in (one_steps, other_steps)]
    return _mean_of_powers((one[places[0]] - other[places[1]]).abs(), shares, power)


def sliced_wasserstein(x: Array, y: Array, *, projections: int = 1000, p: float = 2.0, seed: int = 0) -> float:
    """SW_p of features x (N, D) and y (M, D), over ``projections`` directions drawn from ``seed``, in float64.

    Each direction's distance is exact, also where N and M differ. The same directions are drawn on every device. Raises
    InvalidType or InvalidValue that names the side: fewer than two samples, NaN or Inf, widths that differ.
    """
    power, count = _power(p), whole(projections, "projections")
    one, other = both(x, y)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, one.shape[1], generator=generator, dtype=torch.float64)
    directions = (directions / directions.norm(dim=1, keepdim=True)).to(one.device)
    total = torch.zeros((), dtype=torch.float64, device=one.device)
    for some in directions.split(max(1, _PROJECTED // (len(one) + len(other)))):
        total += projected_powers(one, other, some, power).sum()
    return _root(total / count, power)


def projected_powers(x: Tensor, y: Tensor, directions: Tensor, p: float) -> Tensor:
    """W_p^p of x (N, D) and y (M, D) along each of the directions (K, D): (K,), float64."""
    one, other = (_projected(side, directions).sort(dim=1).values for side in (x, y))
    n, m = len(x), len(y)
    if n == m:
        return (one - other).abs().pow(p).mean(dim=1)
    # quantile functions step at i / n and at j / m: whole numbers where a whole is n m
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    shares = steps.diff(prepend=steps.new_zeros(1)).double() / (n * m)
    return (one[:, (steps - 1) // m] - other[:, (steps - 1) // n]).abs().pow(p) @ shares


def _projected(rows: Tensor, directions: Tensor) -> Tensor:
    """(K, N), float64; rows are widened a block at a time."""
    return torch.cat([directions @ rows[block].double().T for block in blocks(*rows.shape)], dim=1)


def wasserstein(x: Array, y: Array, *, p: float = 1.0) -> float:
    """Exact W_p of small sets of features x (N, D) and y (M, D), with the Euclidean distance between them.

    As many samples on both sides are matched by the assignment, at most 5,000; otherwise a linear program, of at most 250,000
    pairs. Both are SciPy's. Raises Unavailable without SciPy, InvalidValue for more samples, and as :func:`sliced_wasserstein`.
    """
    power = _power(p)
    one, other = both(x, y)
    n, m = len(one), len(other)
    if n == m > LARGEST:
        raise InvalidValue(f"expected at most {LARGEST} samples, got {n}: take fewer, or sliced_wasserstein")
    if n != m and n * m > _UNEVEN:
        raise InvalidValue(
            f"expected as many samples on both sides, or N times M of at most {_UNEVEN}, got {n} and {m}: "
            "leave some out, or take sliced_wasserstein"
        )
    try:
        import scipy  # noqa: F401
    except ImportError:
        raise Unavailable("the exact Wasserstein distance needs SciPy: pip install scipy") from None
    one, other = one.double(), other.double()
    costs = squared_distances(one, other).pow_(power / 2).cpu()
    _check_finite(costs, power)
    lines, columns, shares = (part.to(one.device) for part in (_matched(costs) if n == m else _planned(costs)))
    # of the pairs of the best plan alone, from their differences: products would leave 1e-8 of what is zero
    return _mean_of_powers((one[lines] - other[columns]).norm(dim=1), shares, power)


def _matched(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest plan of as many samples on both sides: a row, a column and a share for each pair."""
    from scipy.optimize import linear_sum_assignment

    lines, columns = (torch.from_numpy(index) for index in linear_sum_assignment(costs.numpy()))
    return lines, columns, torch.full((len(costs),), 1 / len(costs), dtype=torch.float64)


def _planned(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cheapest plan of N and M samples, of which each row sends M and each column takes N."""
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, kron, vstack

    n, m = costs.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    amounts = np.repeat([m, n], [n, m])
    # its tolerances are absolute
    unit = costs / max(costs.max().item(), np.finfo(np.float64).tiny)
    done = linprog(unit.flatten().numpy(), A_eq=sums, b_eq=amounts, method="highs")
    if done.x is None:
        raise InvalidValue(f"the linear program of {n} and {m} samples found no plan: {done.message}")
    plan = torch.from_numpy(done.x).reshape(n, m)
    lines, columns = plan.nonzero(as_tuple=True)
    return lines, columns, plan[lines, columns] / (n * m)


def _quantiles(numbers: Array, weights: Array | None, name: str) -> tuple[Tensor, Tensor]:
    """The numbers in order, and the share of those up to each; float64."""
    values = tensor(numbers, name).double()
    if values.dim() != 1 or len(values) == 0:
        raise InvalidValue(f"{name}: expected numbers (N,), N at least 1, got {tuple(values.shape)}")
    check_numbers(values, name)
    values, order = values.sort()
    if weights is None:
        return values, torch.arange(1, len(values) + 1, device=values.device).double() / len(values)
    shares = tensor(weights, f"{name}_weights").to(values)
    if shares.shape != values.shape:
        raise InvalidValue(f"{name}_weights: expected one for each of {len(values)} numbers, got {tuple(shares.shape)}")
    check_numbers(shares, f"{name}_weights")
    if (shares < 0).any() or not shares.any():
        raise InvalidValue(f"{name}_weights: expected none below 0 and one above, got {shares.min().item():.3g} at least")
    steps = shares[order].cumsum(dim=0)
    return values, steps / steps[-1]


def _power(p: float) -> float:
    if not 1 <= p < math.inf:
        raise InvalidValue(f"expected p of at least 1, got {p}")
    return float(p)


def _mean_of_powers(costs: Tensor, shares: Tensor, p: float) -> float:
    """(sum of shares times costs^p)^(1/p), of which no power underflows that counts."""
    unit = costs.max().item()
    return unit * _root((costs / unit).pow(p) @ shares, p) if unit > 0 else 0.0


def _root(power: Tensor, p: float) -> float:
    _check_finite(power, p)
    return max(0.0, power.item()) ** (1 / p)


def _check_finite(powers: Tensor, p: float) -> None:
    if not powers.isfinite().all():
        raise InvalidValue(f"numbers too large to be raised to the power of {p:g} in float64: divide them by a constant")
