r"""Kullback-Leibler and Jensen-Shannon divergence (Kullback and Leibler 1951; Lin 1991, equation 4.1), in nats.

    KL(p | q) = sum_i p_i log (p_i / q_i)                    JS(p, q) = KL(p | m) / 2 + KL(q | m) / 2,  m = (p + q) / 2

of class histograms, and of one- or two-dimensional densities, which samples are made into by counting them on a common grid.
With p the data's and q the generator's, KL(p | q) punishes modes that are missed, KL(q | p) samples where there are no data.

A cell with p_i = 0 adds nothing. A cell with q_i = 0 < p_i makes KL infinite, and is no trouble to JS, which is at most log 2.
``smoothing`` adds as much to every cell before the division by the sum: with counts, 1 is Laplace's rule, 0.5 Krichevsky and
Trofimov's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array, check_numbers, tensor
from ganfast.metrics.rows import both

Extent = Sequence[tuple[float, float]]


class Divergences(NamedTuple):
    """Of p from q: KL(p | q), KL(q | p), and JS(p, q), in nats."""

    kl: float
    reverse_kl: float
    js: float


def kl_divergence(p: Array, q: Array, *, smoothing: float = 0.0) -> float:
    """KL(p | q) in nats, of counts or probabilities of any one shape; infinite where q has an empty cell that p has not.

    Raises InvalidValue that names the side: shapes that differ, NaN, Inf, negative cells, nothing but zeros; negative smoothing.
    """
    return _kl(*_distributions(p, q, smoothing))


def js_divergence(p: Array, q: Array, *, smoothing: float = 0.0) -> float:
    """JS(p, q) in nats, from 0 to log 2, of counts or probabilities of any one shape. Raises as :func:`kl_divergence`."""
    return _js(*_distributions(p, q, smoothing))


def sample_divergences(
    x: Array, y: Array, *, bins: int = 50, extent: Extent | None = None, smoothing: float = 0.0
) -> Divergences:
    """Divergences of the densities of samples x (N,) or (N, D) from those of y (M,) or (M, D), D 1 or 2.

    Both are counted on one grid of ``bins`` equal cells a side. It spans all samples, or ``extent``, a (low, high) for each
    dimension; then whatever lies outside is one cell more. Both counts get ``smoothing``.

    What is compared are histograms: finer cells see smaller differences and more noise, about cells / 2N + cells / 2M of KL
    between samples of one distribution. Raises InvalidValue: three or more dimensions, otherwise as :func:`kl_divergence`.
    """
    one, other = both(_column(x, "x"), _column(y, "y"))
    if one.shape[1] > 2:
        raise InvalidValue(f"expected samples in 1 or 2 dimensions, got {one.shape[1]}: a grid would have hardly any per cell")
    bins = whole(bins, "bins")
    one, other = one.double(), other.double()
    low, high = torch.cat([one, other]).aminmax(dim=0) if extent is None else _given(extent, one)
    cells = slice(None) if extent else slice(-1)  # without an extent there is no outside, and nothing to smooth there
    p, q = _distributions(_counts(one, low, high, bins)[cells], _counts(other, low, high, bins)[cells], smoothing)
    return Divergences(_kl(p, q), _kl(q, p), _js(p, q))


def _kl(p: Tensor, q: Tensor) -> float:
    there = p > 0
    # below zero is rounding
    return max(0.0, (p[there] * (p[there].log() - q[there].log())).sum().item())


def _js(p: Tensor, q: Tensor) -> float:
    middle = (p + q) / 2
    return min((_kl(p, middle) + _kl(q, middle)) / 2, math.log(2))


def _distributions(p: Array, q: Array, smoothing: float) -> tuple[Tensor, Tensor]:
    one, other = tensor(p, "p").double(), tensor(q, "q").double()
    if one.shape != other.shape or one.numel() == 0:
        raise InvalidValue(f"expected p and q of one shape and not empty, got {tuple(one.shape)} and {tuple(other.shape)}")
    if not 0 <= smoothing < math.inf:
        raise InvalidValue(f"expected smoothing of at least 0, got {smoothing}")
    return _normalised(one, "p", smoothing), _normalised(other.to(one.device), "q", smoothing)


def _normalised(cells: Tensor, name: str, smoothing: float) -> Tensor:
    check_numbers(cells, name)
    if (cells < 0).any():
        raise InvalidValue(f"{name}: expected counts or probabilities of at least 0, got {cells.min().item():.3g}")
    total = cells.sum() + smoothing * cells.numel()
    if total == 0:
        raise InvalidValue(f"{name} is zero in every cell: there is nothing to compare")
    return ((cells + smoothing) / total).flatten()


def _column(samples: Array, name: str) -> Array:
    values = tensor(samples, name)
    return values[:, None] if values.dim() == 1 else values


def _given(extent: Extent, samples: Tensor) -> tuple[Tensor, Tensor]:
    corners = torch.tensor(extent, dtype=torch.float64, device=samples.device)
    if corners.shape != (samples.shape[1], 2) or not (corners[:, 0] < corners[:, 1]).all() or not corners.isfinite().all():
        raise InvalidValue(f"expected an extent of {samples.shape[1]} pairs (low, high), low < high, got {extent}")
    return corners[:, 0], corners[:, 1]


def _counts(samples: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Samples a cell (bins^D + 1,); the last cell is what lies outside, and the upper border belongs to the last bin."""
    inside = ((samples >= low) & (samples <= high)).all(dim=1)
    width = torch.where(high > low, high - low, 1.0)
    place = ((samples[inside] - low) / width * bins).long().clamp(max=bins - 1)
    cell = place[:, 0] if place.shape[1] == 1 else place[:, 0] * bins + place[:, 1]
    counts = cell.bincount(minlength=bins ** samples.shape[1] + 1)
    counts[-1] = (~inside).sum()
    return counts
