r"""Precision, recall, density and coverage: how real generated samples are, and how much of the real ones they reach.

A set of features stands for the union of its balls, each around a sample and as wide as to its k-th nearest other one
(Kynkaanniemi et al. 2019, equations 1 to 3; Naeem et al. 2020, equations 3 to 7):

    precision = the share of fake samples in some real ball      recall   = the share of real samples in some fake ball
    density   = real balls that a fake sample lies in, over k    coverage = the share of real balls that hold a fake sample

Precision and recall are those of the first paper. Where outliers swell fake balls recall is too kind; coverage does without them.
Density is not bound by 1: that is its mean for two sets of one distribution, and it is more where fake samples crowd in dense
places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.neighbours import kth_distances, pairs_within
from ganfast.metrics.rows import rows, same_width


@dataclass(frozen=True)
class Manifold:
    """Features (N, D) and the ``radii`` (N,) of their balls, float64: a reference to be used again is searched but once."""

    features: Tensor
    radii: Tensor
    k: int

    @classmethod
    def of(cls, features: Array, k: int = 5, *, name: str = "features") -> Manifold:
        """Raises, with ``name``, InvalidType: no real numbers; InvalidValue: fewer than k + 1 samples, NaN or Inf."""
        values, k = rows(features, name), whole(k, "k")
        if len(values) <= k:
            raise InvalidValue(
                f"{name}: a {k}-th neighbour needs at least {k + 1} samples, got {len(values)}: give more, or lower k"
            )
        return cls(values, kth_distances(values, k), k)


def precision_recall_density_coverage(
    real: Array | Manifold, fake: Array | Manifold, *, k: int = 5, closed: bool = True
) -> dict[str, float]:
    """``precision``, ``recall``, ``density`` and ``coverage`` of fake features (M, D) and real ones (N, D), or their manifolds.

    Decided in float64, whatever type the features have: two sets that are identical have precision, recall and coverage 1, also
    where samples repeat. A ball holds its surface, as in torch-fidelity, which asks for k = 3; ``closed=False`` is the prdc
    package. Only ties tell them apart.

    Raises InvalidType: no real numbers. Raises InvalidValue: fewer than k + 1 samples on a side, widths that differ, NaN or Inf,
    a manifold of another k.
    """
    sides = [
        side if isinstance(side, Manifold) else Manifold.of(side, k, name=name) for side, name in ((real, "real"), (fake, "fake"))
    ]
    for side, name in zip(sides, ("real", "fake"), strict=True):
        if side.k != k:
            raise InvalidValue(f"{name} is a manifold of k={side.k}, and k={k} is asked for")
    truth, made = sides
    same_width(truth.features, made.features, "real", "fake")
    device = truth.features.device
    dtype = torch.promote_types(truth.features.dtype, made.features.dtype)
    x, y = truth.features.to(dtype), made.features.to(device, dtype)
    around = torch.zeros(len(y), dtype=torch.int64, device=device)  # real balls about each fake sample
    covered, recalled = (torch.zeros(len(x), dtype=torch.bool, device=device) for _ in range(2))
    for in_real, in_fake in pairs_within(x, y, truth.radii, made.radii.to(device), closed=closed):
        around += in_real.y.bincount(minlength=len(y))
        covered[in_real.x] = True
        recalled[in_fake.x] = True
    return {
        "precision": _share(around > 0),
        "recall": _share(recalled),
        "density": around.double().mean().item() / k,
        "coverage": _share(covered),
    }


def _share(chosen: Tensor) -> float:
    return chosen.double().mean().item()
