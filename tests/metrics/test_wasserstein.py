from __future__ import annotations

import importlib
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance, wasserstein_distance_nd

from ganfast.errors import InvalidType, InvalidValue, Unavailable
from ganfast.metrics import rows
from ganfast.metrics.wasserstein import sliced_wasserstein, wasserstein, wasserstein_1d

module = importlib.import_module("ganfast.metrics.wasserstein")  # ganfast.metrics.wasserstein is the function

# ---- in one dimension


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (50, 50), (60, 45), (997, 1000)])
def test_numbers_have_scipys_distance(n: int, m: int) -> None:
    rng = np.random.default_rng(n * m)
    x, y = rng.standard_normal(n), rng.exponential(size=m)
    assert wasserstein_1d(x, torch.from_numpy(y)) == pytest.approx(wasserstein_distance(x, y), rel=1e-11)
    u, v = rng.random(n), 10 * rng.random(m)
    found = wasserstein_1d(x, y, x_weights=u, y_weights=v)
    assert found == pytest.approx(wasserstein_distance(x, y, u, v), rel=1e-11)


def test_weights_are_copies_and_zero_weights_are_none() -> None:
    x, y = np.array([3.0, 1.0, 2.0, 9.0]), np.array([0.0, 5.0])
    for p in (1, 2, 3.5):
        weighted = wasserstein_1d(x, y, p=p, x_weights=np.array([2, 1, 3, 0]), y_weights=np.array([4, 1]))
        copied = wasserstein_1d(np.repeat(x, [2, 1, 3, 0]), np.repeat(y, [4, 1]), p=p)
        assert weighted == pytest.approx(copied, rel=1e-12)


def test_gaussians_quantiles_are_as_far_apart_as_the_formula_says() -> None:
    # quantiles at the middles of 100,000 shares; the tails that they leave out hold 1e-4 of the second moments
    u = (np.arange(100_000) + 0.5) / 100_000
    quantiles = math.sqrt(2) * torch.erfinv(torch.from_numpy(2 * u - 1))
    assert wasserstein_1d(quantiles, 2 + 3 * quantiles, p=2) == pytest.approx(math.hypot(2, 3 - 1), rel=1e-4)
    assert wasserstein_1d(quantiles, 2 + quantiles, p=1) == pytest.approx(2, rel=1e-12)


def test_a_move_costs_its_length_whatever_p() -> None:
    x = np.random.default_rng(0).standard_normal(100)
    for p in (1, 2, 7):
        assert wasserstein_1d(x, x + 0.5, p=p) == pytest.approx(0.5, rel=1e-12)
        assert wasserstein_1d(x, x, p=p) == 0


# ---- sliced


@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 18), (7, 20)])
@pytest.mark.parametrize("p", [1, 2])
def test_one_feature_has_one_direction_and_the_exact_distance(n: int, m: int, p: int) -> None:
    x, y = np.random.default_rng(n).standard_normal(n), np.random.default_rng(m).random(m)
    found = sliced_wasserstein(x[:, None], y[:, None], projections=3, p=p)
    assert found == pytest.approx(wasserstein_1d(x, y, p=p), rel=1e-12)


def test_a_move_costs_the_mean_of_its_projections() -> None:
    # |<direction, move>|^2 has mean |move|^2 / D and, by Beta(1/2, (D-1)/2), a standard deviation of sqrt(2 (D-1) / (D+2)) of it
    rng = np.random.default_rng(1)
    x, move, dimensions, projections = rng.standard_normal((50, 16)), rng.standard_normal(16), 16, 20_000
    found = sliced_wasserstein(x, x + move, projections=projections, p=2, seed=3) ** 2
    truth = (move**2).sum() / dimensions
    error = truth * math.sqrt(2 * (dimensions - 1) / (dimensions + 2) / projections)
    assert abs(found - truth) < 4 * error
    assert abs(found - truth) > 0


def test_scaling_a_gaussian_costs_what_one_dimension_says() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((20_000, 3))
    # along every direction N(0, 1) becomes N(0, 4): W_1 is E|z|. The samples are the same ones, so only E|z| has an error:
    # sqrt(1 - 2/pi) / sqrt(20,000) = 0.0043 along one direction, and no less for many
    assert sliced_wasserstein(x, 2 * x[::-1].copy(), projections=50, p=1) == pytest.approx(math.sqrt(2 / math.pi), abs=0.012)


def test_other_samples_sizes_seeds_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((40, 5)), rng.random((24, 5))
    found = sliced_wasserstein(x, y, projections=64, seed=1)
    assert sliced_wasserstein(np.repeat(x, 3, 0), np.repeat(y, 5, 0), projections=64, seed=1) == pytest.approx(found, rel=1e-12)
    assert sliced_wasserstein(y, x, projections=64, seed=1) == pytest.approx(found, rel=1e-12)
    assert sliced_wasserstein(x, y, projections=64, seed=2) != pytest.approx(found, rel=1e-6)
    assert sliced_wasserstein(x, x, projections=64) == 0
    assert sliced_wasserstein(x, x[::-1].copy(), projections=64) < 1e-14
    monkeypatch.setattr(module, "_PROJECTED", 200)
    monkeypatch.setattr(rows, "_CELLS", 30)
    assert sliced_wasserstein(x, y, projections=64, seed=1) == pytest.approx(found, rel=1e-12)


# ---- exact


def test_few_samples_are_matched_as_trying_every_order_says() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 6, 3))
    for p in (1, 2):
        tried = min(np.mean(np.linalg.norm(x[list(order)] - y, axis=1) ** p) for order in itertools.permutations(range(len(x))))
        assert wasserstein(x, torch.from_numpy(y), p=p) == pytest.approx(tried ** (1 / p), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (12, 30), (9, 7)])
def test_it_is_scipys_distance_of_many_dimensions(n: int, m: int) -> None:
    rng = np.random.default_rng(5)
    x, y = 100 + rng.standard_normal((n, 4)), 100 + rng.random((m, 4))
    # the linear program's own tolerance is 1e-7
    assert wasserstein(x, y) == pytest.approx(wasserstein_distance_nd(x, y), rel=1e-10 if n == m else 1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_unit_does_not_matter(scale: float) -> None:
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((6, 2)), rng.standard_normal((9, 2))
    for one, other in ((x, y), (x, y[:6])):
        assert wasserstein(scale * one, scale * other) == pytest.approx(scale * wasserstein(one, other), rel=1e-10)
    assert wasserstein(np.ones((3, 2)), np.ones((2, 2))) == 0


@pytest.mark.parametrize("p", [1, 2])
def test_uneven_sides_are_copies_of_even_ones(p: int) -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((6, 2)), rng.standard_normal((9, 2))
    assert wasserstein(x, y, p=p) == pytest.approx(wasserstein(np.repeat(x, 3, 0), np.repeat(y, 2, 0), p=p), rel=1e-6)


def test_one_feature_costs_as_much_as_numbers_and_a_permutation_nothing() -> None:
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((2, 200))
    assert wasserstein(x[:, None], y[:, None], p=2) == pytest.approx(wasserstein_1d(x, y, p=2), rel=1e-10)
    images = rng.standard_normal((50, 300)).astype(np.float32)
    assert wasserstein(images, images[rng.permutation(50)]) == 0
    assert sliced_wasserstein(x[:, None], y[:, None], projections=1) == pytest.approx(wasserstein_1d(x, y, p=2))


def test_slices_cost_no_more_than_the_whole() -> None:
    x, y = np.random.default_rng(8).standard_normal((2, 60, 4))
    for p in (1, 2):
        assert 0 < sliced_wasserstein(x, y, projections=100, p=p) < wasserstein(x, y, p=p)


# ---- refusals


def test_refusals() -> None:
    two = np.zeros((2, 3))
    for call, message in [
        (lambda: wasserstein_1d(two, np.zeros(2)), r"x: expected numbers \(N,\), N at least 1, got \(2, 3\)"),
        (lambda: wasserstein_1d(np.zeros(2), np.zeros(0)), r"y: expected numbers .* got \(0,\)"),
        (lambda: wasserstein_1d(np.zeros(2), np.array([np.nan])), "y holds 1 values that are NaN or Inf"),
        (lambda: wasserstein_1d(np.zeros(2), np.zeros(2), p=0.5), "p of at least 1, got 0.5"),
        (
            lambda: wasserstein_1d(np.zeros(2), np.zeros(2), x_weights=np.ones(3)),
            r"x_weights: expected one for each of 2 .*\(3,\)",
        ),
        (lambda: wasserstein_1d(np.zeros(2), np.zeros(2), y_weights=np.array([1, -1])), "y_weights: expected none below 0"),
        (
            lambda: wasserstein_1d(np.zeros(2), np.zeros(2), y_weights=np.zeros(2)),
            "y_weights: expected none below 0 and one above",
        ),
        (lambda: wasserstein_1d(np.zeros(2), np.zeros(2), y_weights=np.array([1, np.inf])), "y_weights holds 1 values"),
        (lambda: sliced_wasserstein(two, np.zeros((2, 4))), "3 in x and 4 in y"),
        (lambda: sliced_wasserstein(two[:1], two), "x: expected at least 2 samples, got 1"),
        (lambda: sliced_wasserstein(two, two, projections=0), "projections: expected at least 1, got 0"),
        (lambda: wasserstein(two, two + np.inf), "y holds 6 values that are NaN or Inf"),
        (lambda: sliced_wasserstein(two, two + 1e140, p=4), "too large to be raised to the power of 4"),
        (lambda: wasserstein(two, two + 1e140, p=4), "too large to be raised to the power of 4 .* divide them by a constant"),
        (lambda: wasserstein(np.zeros((5001, 1)), np.zeros((5001, 1))), "at most 5000 samples, got 5001: take fewer, or sliced"),
        (lambda: wasserstein(np.zeros((500, 1)), np.zeros((501, 1))), "at most 250000, got 500 and 501: leave some out"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidType, match="x: expected real numbers"):
        wasserstein_1d(np.array(["a"]), np.zeros(2))


def test_without_scipy_the_exact_distance_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(Unavailable, match="needs SciPy: pip install scipy"):
        wasserstein(np.zeros((2, 2)), np.ones((2, 2)))
    assert sliced_wasserstein(np.zeros((2, 2)), np.ones((2, 2))) > 0


def test_powers_of_small_and_of_large_numbers_are_there() -> None:
    x = np.random.default_rng(0).standard_normal(50)
    for scale in (1e-200, 1e-20, 1e-3, 1e140):
        for p in (1, 2, 100):
            assert wasserstein_1d(scale * x, scale * (x + 1), p=p) == pytest.approx(scale, rel=1e-12)
