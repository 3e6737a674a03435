from __future__ import annotations

import numpy as np
import pytest
import torch

from ganfast.errors import InvalidValue
from ganfast.metrics import mode_coverage

RING = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
SIGMA = 0.02


def mixture(per_mode: list[int], seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([RING[k] + SIGMA * generator.standard_normal((n, 2)) for k, n in enumerate(per_mode)])


def test_the_mixture_itself_covers_every_mode_at_the_quality_of_three_sigma() -> None:
    coverage = mode_coverage(mixture([2500] * 8), RING, SIGMA)
    assert coverage["modes"] == coverage["of"] == 8
    # a 2-D Gaussian lies within 3 sigma with probability 1 - exp(-9 / 2)
    assert coverage["quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.003)
    assert sum(coverage["counts"]) == round(coverage["quality"] * 20000)


def test_collapse_shows() -> None:
    coverage = mode_coverage(mixture([800, 0, 0, 0, 0, 0, 0, 0]), RING, SIGMA)
    assert coverage["modes"] == 1
    assert coverage["counts"][1:] == [0] * 7


def test_a_mode_needs_a_tenth_of_its_fair_share() -> None:
    # 800 points of 8 modes: a fair share is 100, so 10 points cover a mode and 9 do not
    points = np.repeat(RING[:3], [781, 10, 9], axis=0)
    coverage = mode_coverage(points, RING, SIGMA)
    assert coverage == {"modes": 2, "of": 8, "quality": 1.0, "counts": [781, 10, 9, 0, 0, 0, 0, 0]}


def test_a_fair_share_is_one_of_all_points_noise_included() -> None:
    """Of 800 points, 640 noise: a tenth of a fair share is 10 points, of the good ones alone it would be 2."""
    points = np.concatenate([mixture([44, 44, 44, 5, 5, 6, 6, 6]), np.full((640, 2), 50.0)])
    assert mode_coverage(points, RING, SIGMA)["modes"] == 3


def test_three_sigma_is_the_border() -> None:
    points = np.array([[1 + 2.99 * SIGMA, 0.0], [1 + 3.01 * SIGMA, 0.0], [0.0, 0.0]])
    assert mode_coverage(points, RING, SIGMA)["counts"][0] == 1
    assert mode_coverage(points, RING, SIGMA)["quality"] == pytest.approx(1 / 3)


def test_a_point_between_close_centres_belongs_to_the_nearest() -> None:
    coverage = mode_coverage([[0.4, 0.0], [0.6, 0.0]], np.array([[0.0, 0.0], [1.0, 0.0]]), 1.0)  # type: ignore[arg-type]
    assert coverage["counts"] == [1, 1]


def test_noise_far_away_and_nan_are_of_no_mode() -> None:
    points = np.concatenate([mixture([10] * 8), np.full((20, 2), 50.0), np.full((20, 2), np.nan), np.full((20, 2), np.inf)])
    coverage = mode_coverage(torch.from_numpy(points).float(), torch.from_numpy(RING), 10 * SIGMA)
    assert coverage["modes"] == 8
    assert coverage["quality"] == pytest.approx(80 / 140)


def test_points_far_from_the_origin_lose_no_digits() -> None:
    points = mixture([100] * 8)
    assert mode_coverage(points + 1e6, RING + 1e6, SIGMA)["counts"] == mode_coverage(points, RING, SIGMA)["counts"]


def test_few_points_cover_no_mode_for_nothing() -> None:
    assert mode_coverage(RING[:1], RING, SIGMA)["modes"] == 1


def test_refusals() -> None:
    with pytest.raises(InvalidValue, match=r"points \(N, D\) and centres \(K, D\), got \(4, 3\) and \(8, 2\)"):
        mode_coverage(np.zeros((4, 3)), RING, SIGMA)
    with pytest.raises(InvalidValue, match=r"got \(0, 2\)"):
        mode_coverage(np.zeros((0, 2)), RING, SIGMA)
    with pytest.raises(InvalidValue, match="sigma > 0, got 0"):
        mode_coverage(RING, RING, 0)
