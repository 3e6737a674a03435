"""The Frechet distance at infinitely many samples: nearer to a closed form than that of all samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics import FeatureStatistics, frechet_distance, frechet_distance_from_features
from ganfast.metrics.draws import permutations
from ganfast.metrics.frechet_infinity import frechet_curve, frechet_infinity

WIDTH = 24
SCALES = torch.linspace(0.5, 2, WIDTH, dtype=torch.float64)


TRUTH = (WIDTH * 0.2**2 + (SCALES - 1).square().sum()).item()  # from N(0.2, diag(SCALES^2)) to N(0, I)


def drawn(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64) * SCALES + 0.2


@pytest.fixture
def normal(tmp_path: Path) -> FeatureStatistics:
    """N(0, I) itself, not samples of it."""
    np.savez(tmp_path / "normal.npz", mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    return FeatureStatistics.load(tmp_path / "normal.npz")


def distance(x: Tensor, to: FeatureStatistics) -> float:
    return float(frechet_distance(x.mean(dim=0), torch.cov(x.T), to.mean, to.covariance))


def test_it_is_nearer_to_the_truth_than_all_samples_are(normal: FeatureStatistics) -> None:
    sets = [drawn(1500, seed) for seed in range(10)]
    of_all = np.array([distance(x, normal) for x in sets])
    at_infinity = np.array([frechet_infinity(x, normal) for x in sets])
    bias = of_all.mean() - TRUTH
    assert bias > 0.01 * TRUTH
    assert abs(at_infinity.mean() - TRUTH) < bias / 2
    assert np.abs(at_infinity - TRUTH).mean() < np.abs(of_all - TRUTH).mean()


def test_the_curve_is_that_of_seeded_subsets_and_the_line_is_theirs(normal: FeatureStatistics) -> None:
    x = drawn(900, 0)
    sizes, distances = frechet_curve(x, normal, points=5, smallest=300, seed=4)
    assert sizes == [300, 450, 600, 750, 900]
    draw = permutations(4)
    assert distances == pytest.approx([distance(x[draw(900)[:size]], normal) for size in sizes], rel=1e-9)
    _, intercept = np.linalg.lstsq(np.stack([1 / np.array(sizes), np.ones(5)], axis=1), distances, rcond=None)[0]
    assert frechet_infinity(x, normal, points=5, smallest=300, seed=4) == pytest.approx(intercept, rel=1e-9)
    assert frechet_infinity(x, normal, points=5, smallest=300, seed=5) != pytest.approx(intercept, rel=1e-6)


def test_a_reference_of_features_and_fewer_samples_than_features() -> None:
    x, y = drawn(30, 0), drawn(50, 1)
    sizes, distances = frechet_curve(x, y.numpy(), points=4)
    assert sizes == [3, 12, 21, 30]
    assert distances[-1] == pytest.approx(frechet_distance_from_features(x, y), rel=1e-9)


def test_refusals(normal: FeatureStatistics) -> None:
    x = drawn(100, 0)
    for call, message in (
        (lambda: frechet_infinity(x[:15], normal), "15 sizes from 2 on need at least 16 samples in x, got 15"),
        (lambda: frechet_infinity(x, normal, smallest=99), "15 sizes from 99 on need at least 113 samples"),
        (lambda: frechet_infinity(x, normal, points=1), "points: expected at least 2, got 1"),
        (lambda: frechet_infinity(x, normal, smallest=1), "smallest: expected at least 2, got 1"),
        (lambda: frechet_infinity(x[:, 1:], normal), "as many features on both sides, got 23 in x and 24 in reference"),
        (lambda: frechet_infinity(x, x[:, 1:]), "as many features on both sides, got 24 in x and 23 in reference"),
        (lambda: frechet_infinity(x * torch.nan, normal), "x holds 2400 values that are NaN or Inf"),
        (lambda: frechet_infinity(x, FeatureStatistics()), "as many features on both sides"),
    ):
        with pytest.raises(InvalidValue, match=message):
            call()
