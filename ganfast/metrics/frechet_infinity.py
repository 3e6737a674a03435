r"""The Frechet distance that an infinite number of samples would have (Chong and Forsyth 2020, section 3: FID-infinity).

The distance of N samples to a reference is too large by about b / N, where b depends on the generator, so that at equal N one
generator may look better than a truly better one. Distances of subsets of several sizes are fitted by d(N) = d + b / N; d is what
is asked for. The reference's own bias stays: it should come from as many samples as there are.
"""

from __future__ import annotations

import numpy as np

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.draws import Seed, permutations
from ganfast.metrics.frechet import distance_between, fitted
from ganfast.metrics.rows import rows, same_width
from ganfast.metrics.statistics import FeatureStatistics


def frechet_infinity(
    x: Array, reference: Array | FeatureStatistics, *, points: int = 15, smallest: int | None = None, seed: Seed = 2020
) -> float:
    """Squared Frechet distance of x's distribution to the reference; rounding and chance may take it below zero.

    Arguments and errors are those of :func:`frechet_curve`.
    """
    sizes, distances = frechet_curve(x, reference, points=points, smallest=smallest, seed=seed)
    _, intercept = np.polyfit(1 / np.array(sizes), distances, 1)
    return float(intercept)


def frechet_curve(
    x: Array, reference: Array | FeatureStatistics, *, points: int = 15, smallest: int | None = None, seed: Seed = 2020
) -> tuple[list[int], list[float]]:
    """Sizes and the distances of random subsets of x (N, D) of these sizes to the reference, features (M, D) or statistics.

    ``points`` sizes, evenly from ``smallest`` (N / 10 by default, as in the paper) to N; each subset is drawn anew.

    Raises InvalidType: no real numbers. Raises InvalidValue: samples too few for so many sizes, NaN or Inf, widths that differ.
    """
    features = rows(x, "x")
    count, first = whole(points, "points", least=2), max(2, len(features) // 10)
    if smallest is not None:
        first = whole(smallest, "smallest", least=2)
    if first + count - 1 > len(features):
        raise InvalidValue(f"{count} sizes from {first} on need at least {first + count - 1} samples in x, got {len(features)}")
    if isinstance(reference, FeatureStatistics):
        if reference.width != features.shape[1]:
            sizes_of = f"{features.shape[1]} in x and {reference.width} in reference"
            raise InvalidValue(f"expected as many features on both sides, got {sizes_of}")
        goal = reference.gaussian
    else:
        other = rows(reference, "reference")
        same_width(features, other, "x", "reference")
        goal = fitted(other, "reference")
    sizes = [int(size) for size in np.linspace(first, len(features), count)]
    draw = permutations(seed)
    subsets = (features[draw(len(features))[:size].to(features.device)] for size in sizes)
    return sizes, [float(distance_between(fitted(subset, "x"), goal, "x", "reference")) for subset in subsets]
