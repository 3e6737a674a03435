from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.divergences import js_divergence, kl_divergence, sample_divergences


@pytest.mark.parametrize("shape", [(2,), (10,), (4, 5)])
def test_random_histograms_have_scipys_divergences(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    p, q = rng.integers(1, 100, shape), rng.random(shape)
    one, other = p.ravel() / p.sum(), q.ravel() / q.sum()
    assert kl_divergence(p, q) == pytest.approx(entropy(one, other), rel=1e-12, abs=1e-14)
    assert js_divergence(p, q) == pytest.approx(jensenshannon(one, other) ** 2, rel=1e-11, abs=1e-14)
    assert js_divergence(torch.from_numpy(q), torch.from_numpy(p)) == pytest.approx(js_divergence(p, q), rel=1e-11)


def test_by_hand() -> None:
    assert kl_divergence(np.array([1, 1]), np.array([3, 1])) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-14)


def test_equal_ones_are_zero_apart_and_apart_ones_are_log_two() -> None:
    p = np.random.default_rng(0).random(1000)
    assert kl_divergence(p, 7 * p) == pytest.approx(0, abs=1e-15)
    assert kl_divergence(p, p) == js_divergence(p, p) == 0
    assert js_divergence(np.array([1, 0]), np.array([0, 5])) == math.log(2)


def test_zero_cells() -> None:
    full, holed = np.array([1.0, 1.0]), np.array([1.0, 0.0])
    assert kl_divergence(full, holed) == math.inf
    assert kl_divergence(holed, full) == pytest.approx(math.log(2))
    assert kl_divergence(np.array([1, 0, 1]), np.array([1, 0, 1])) == 0
    assert js_divergence(full, holed) == pytest.approx(jensenshannon(full, holed) ** 2)
    # with one more in each cell: (2/3, 1/3) against (1/2, 1/2)
    assert kl_divergence(full, holed, smoothing=1) == pytest.approx(0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3)))


def test_samples_in_one_dimension_approach_the_gaussians_divergence() -> None:
    rng = np.random.default_rng(1)
    n, bins = 400_000, 60
    x, y = rng.standard_normal(n), 0.5 + 1.5 * rng.standard_normal(n)
    found = sample_divergences(x, y, bins=bins)
    truth = math.log(1.5) + (1 + 0.25) / (2 * 1.5**2) - 0.5
    # Noise: the standard deviation of log p/q over sqrt(n) is 1e-3, and cells / n adds 1.5e-4. Cells of 0.25 lose
    # width^2 / 24 times the mean squared slope of log p/q, at most 0.6: 1.6e-3.
    assert found.kl == pytest.approx(truth, abs=4e-3)
    assert sample_divergences(y, x, bins=bins, smoothing=0.5)[:2] == pytest.approx(
        sample_divergences(x, y, bins=bins, smoothing=0.5)[1::-1]
    )


def test_samples_in_two_dimensions_approach_the_gaussians_divergence() -> None:
    rng = np.random.default_rng(2)
    n = 400_000
    x = rng.standard_normal((n, 2))
    y = rng.standard_normal((n, 2)) + np.array([0.6, -0.3])
    truth = (0.6**2 + 0.3**2) / 2
    found = sample_divergences(x, y, bins=30, smoothing=0.5)
    # Noise 1e-3; some 500 cells hold samples: 500 / n = 1.3e-3; cells of 0.35 lose 0.35^2 / 12 * truth = 1 %: 2.3e-3.
    assert found.kl == pytest.approx(truth, abs=6e-3)
    assert found.reverse_kl == pytest.approx(truth, abs=6e-3)
    assert 0 < found.js < found.kl / 4


@pytest.mark.parametrize("dimensions", [1, 2])
def test_counting_is_numpys(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, dimensions)), rng.random((200, dimensions))
    bounds = [(-1.0, 1.5)] * dimensions
    cells = [np.histogramdd(side, 7, bounds)[0].ravel() for side in (x, y)]
    p, q = (np.append(cell, n - cell.sum()) for cell, n in zip(cells, (300, 200), strict=True))
    found = sample_divergences(x, torch.from_numpy(y), bins=7, extent=bounds, smoothing=0.25)
    assert found.kl == pytest.approx(kl_divergence(p, q, smoothing=0.25), rel=1e-12)
    assert found.reverse_kl == pytest.approx(kl_divergence(q, p, smoothing=0.25), rel=1e-12)
    assert found.js == pytest.approx(js_divergence(p, q, smoothing=0.25), rel=1e-12)


def test_both_ends_of_the_grid_belong_to_it_and_a_constant_is_one_cell() -> None:
    found = sample_divergences(np.array([0.0, 1.0]), np.array([0.0, 0.0, 1.0]), bins=2)
    assert found.kl == pytest.approx(kl_divergence(np.array([1, 1]), np.array([2, 1])))
    assert sample_divergences(np.ones(5), np.ones(3)) == (0, 0, 0)
    far = sample_divergences(np.ones(5), np.full(3, 9.0), extent=[(2, 3)])
    assert far == (0, 0, 0)  # one cell outside holds both


def test_refusals() -> None:
    ones = np.ones(3)
    for call, message in [
        (lambda: kl_divergence(ones, np.ones(4)), r"one shape and not empty, got \(3,\) and \(4,\)"),
        (lambda: js_divergence(np.ones(0), np.ones(0)), "not empty"),
        (lambda: kl_divergence(ones, np.zeros(3)), "q is zero in every cell"),
        (lambda: kl_divergence(-ones, ones), "p: expected counts or probabilities of at least 0, got -1"),
        (lambda: js_divergence(ones, np.array([1, np.nan, 1])), "q holds 1 values that are NaN or Inf, of 3"),
        (lambda: kl_divergence(ones, ones, smoothing=-1), "smoothing of at least 0, got -1"),
        (lambda: sample_divergences(np.ones((5, 3)), np.ones((5, 3))), "1 or 2 dimensions, got 3"),
        (lambda: sample_divergences(ones, np.ones((5, 2))), "1 in x and 2 in y"),
        (lambda: sample_divergences(np.ones(1), ones), "x: expected at least 2 samples, got 1"),
        (lambda: sample_divergences(ones, np.array([1, np.inf])), "y holds 1 values"),
        (lambda: sample_divergences(ones, ones, bins=0), "bins: expected at least 1, got 0"),
        (lambda: sample_divergences(ones, ones, extent=[(1, 1)]), r"1 pairs \(low, high\), low < high"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidType, match=r"bins: expected an integer, got 2\.5"):
        sample_divergences(ones, ones, bins=2.5)  # type: ignore[arg-type]


def test_without_an_extent_there_is_no_outside_to_smooth() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 300))
    ends = min(x.min(), y.min()), max(x.max(), y.max())
    p, q = (np.histogram(side, 5, ends)[0] for side in (x, y))
    found = sample_divergences(x, y, bins=5, smoothing=3)
    assert found.kl == pytest.approx(kl_divergence(p, q, smoothing=3), rel=1e-12)
    assert found.js == pytest.approx(js_divergence(p, q, smoothing=3), rel=1e-12)
