"""Which modes of a mixture a generator reaches, on the toy sets whose modes are known (Metz et al. 2017 count modes this way)."""

from __future__ import annotations

from typing import TypedDict

import torch

from ganfast.errors import InvalidValue
from ganfast.metrics.arrays import Array, tensor

QUALITY_RADIUS = 3.0  # sigmas around a centre within which a point counts as of that mode
COVERED_SHARE = 0.1  # of a mode's fair share, N / K points, that it must hold to count as covered


class ModeCoverage(TypedDict):
    modes: int
    of: int
    quality: float
    counts: list[int]


def mode_coverage(points: Array, centres: Array, sigma: float) -> ModeCoverage:
    """Modes covered and share of good points, for points (N, D), centres (K, D) and the modes' common standard deviation.

    A point belongs to its nearest centre if it is within 3 ``sigma`` of it, and to none otherwise. ``quality`` is the share of
    the N points that belong to a centre. ``counts`` (K) says how many each holds, and ``modes`` how many centres hold at least a
    tenth of their fair share N / K (and at least one point); ``of`` is K. Points that are NaN or Inf belong to no centre.
    """
    where, middle = tensor(points).double(), tensor(centres).double()
    if where.dim() != 2 or middle.dim() != 2 or where.shape[1] != middle.shape[1] or 0 in (len(where), len(middle)):
        raise InvalidValue(f"expected points (N, D) and centres (K, D), got {tuple(where.shape)} and {tuple(middle.shape)}")
    if not sigma > 0:
        raise InvalidValue(f"expected sigma > 0, got {sigma}")
    # differences, not the faster expansion through products, which loses the digits that decide what is 3 sigma away
    distances = torch.cdist(where, middle.to(where.device), compute_mode="donot_use_mm_for_euclid_dist")
    distance, nearest = distances.nan_to_num(nan=torch.inf).min(dim=1)
    good = distance <= QUALITY_RADIUS * sigma
    counts = nearest[good].bincount(minlength=len(middle))
    needed = max(1.0, COVERED_SHARE * len(where) / len(middle))
    return {
        "modes": int((counts >= needed).sum()),
        "of": len(middle),
        "quality": good.double().mean().item(),
        "counts": counts.tolist(),
    }
