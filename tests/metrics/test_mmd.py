from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.kernel_distance import kernel_distance
from ganfast.metrics.mmd import (
    Kernel,
    energy_kernel,
    gaussian_kernel,
    median_distance,
    mmd,
    mmd_test,
    polynomial_kernel,
    rational_quadratic_kernel,
)

module = importlib.import_module("ganfast.metrics.mmd")  # ganfast.metrics.mmd is the function

Matrix = Callable[[np.ndarray, np.ndarray], np.ndarray]


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return cdist(x, y, "sqeuclidean")


KERNELS: dict[str, tuple[Kernel, Matrix]] = {
    "gaussian": (
        gaussian_kernel(0.5, 2.0),
        lambda x, y: (np.exp(-squares(x, y) / (2 * 0.25)) + np.exp(-squares(x, y) / (2 * 4))) / 2,
    ),
    "rational quadratic": (
        rational_quadratic_kernel(0.2, 1.0, 5.0),
        lambda x, y: sum((1 + squares(x, y) / (2 * a)) ** -a for a in (0.2, 1, 5)) / 3,
    ),
    "polynomial": (polynomial_kernel(), lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3),
    "another polynomial": (polynomial_kernel(2, gamma=0.5, constant=0), lambda x, y: (x @ y.T / 2) ** 2),
    "energy": (energy_kernel(), lambda x, y: -cdist(x, y)),
}


def by_definition(matrix: Matrix, x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    def within(side: np.ndarray) -> float:
        values = matrix(side, side)
        return values[~np.eye(len(side), dtype=bool)].mean() if unbiased else values.mean()

    return within(x) + within(y) - 2 * matrix(x, y).mean()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("tile", [7, 2048])
def test_it_is_the_mean_over_all_pairs(name: str, unbiased: bool, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", tile)
    kernel, matrix = KERNELS[name]
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 4)), 0.5 + rng.random((31, 4))
    found = mmd(x, torch.from_numpy(y), kernel=kernel, unbiased=unbiased)
    # the energy's diagonal is the root of a rounding, 1e-8, and one in 23 of a mean
    assert found == pytest.approx(by_definition(matrix, x, y, unbiased), rel=1e-11, abs=1e-9 if name == "energy" else 1e-13)


def test_energy_is_scipys_distance_squared() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(300), 1 + rng.exponential(size=200)
    found = mmd(x[:, None], y[:, None], kernel=energy_kernel(), unbiased=False)
    assert found == pytest.approx(energy_distance(x, y) ** 2, abs=1e-9)  # as above


@pytest.mark.parametrize("dimensions", [1, 5])
def test_gaussians_are_as_far_apart_as_the_integral_says(dimensions: int) -> None:
    # E exp(-|u|^2 / 2 b^2) with u ~ N(d, s^2 I) is (b^2 / (b^2 + s^2))^(D/2) exp(-|d|^2 / 2 (b^2 + s^2))
    rng = np.random.default_rng(2)
    bandwidth, move = 1.5, 0.7
    x = rng.standard_normal((4000, dimensions))
    y = 2 * rng.standard_normal((4000, dimensions)) + move

    def mean(variance: float, distance: float) -> float:
        wide = bandwidth**2 + variance
        return (bandwidth**2 / wide) ** (dimensions / 2) * math.exp(-dimensions * distance**2 / (2 * wide))

    truth = mean(2, 0) + mean(8, 0) - 2 * mean(5, move)
    # with kernels in [0, 1], the standard deviation is below sqrt(8 MMD^2 / 4000)
    assert mmd(x, y, kernel=gaussian_kernel(bandwidth)) == pytest.approx(truth, abs=3 * math.sqrt(8 * truth / 4000) / 2)
    assert truth > 0.04


def test_the_default_polynomial_is_the_kernel_distances() -> None:
    rng = np.random.default_rng(10)
    x, y = rng.standard_normal((40, 8)), rng.random((40, 8))
    # a subset of everything is the whole estimate
    assert mmd(x, y, kernel=polynomial_kernel()) == pytest.approx(kernel_distance(x, y, subsets=1, subset_size=40)[0], rel=1e-11)


def test_polynomials_see_moments() -> None:
    # a linear kernel's discrepancy is the squared distance of the means
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((50, 6)), rng.random((40, 6))
    found = mmd(x, y, kernel=polynomial_kernel(1, gamma=1.0, constant=0), unbiased=False)
    assert found == pytest.approx(((x.mean(0) - y.mean(0)) ** 2).sum(), rel=1e-10)


def test_one_distribution_is_zero_on_average_when_unbiased_and_identical_sets_are_zero_when_biased() -> None:
    rng = np.random.default_rng(4)
    values = [mmd(*rng.standard_normal((2, 30, 3)), kernel=gaussian_kernel(1)) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)
    assert min(values) < 0 < max(values)
    x = rng.standard_normal((100, 3))
    for kernel, _ in KERNELS.values():
        assert abs(mmd(x, x, kernel=kernel, unbiased=False)) < 1e-12


def test_far_from_the_origin_no_digits_are_lost() -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 40, 3)).round(6)
    far = mmd(x + 2.0**20, y + 2.0**20, kernel=gaussian_kernel(1))
    assert far == pytest.approx(mmd(x, y, kernel=gaussian_kernel(1)), abs=1e-9)  # what the sum with 2^20 keeps of x


def test_the_bandwidth_is_the_median_distance_unless_given() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((30, 4)), 2 * rng.standard_normal((25, 4))
    distances = np.sort(pdist(np.concatenate([x, y])))
    assert median_distance(x, y) == pytest.approx(distances[(len(distances) - 1) // 2], rel=1e-12)
    assert mmd(x, y) == mmd(x, y, kernel=gaussian_kernel(median_distance(x, y)))
    many = rng.standard_normal((3000, 1))
    # of N(0, 2): |z| sqrt(2), whose median is 0.6745 sqrt(2); 2,000 samples know it to about 1.5 %
    assert median_distance(many, many[::-1].copy(), seed=1) == pytest.approx(0.6745 * math.sqrt(2), rel=0.06)
    assert median_distance(many, many, seed=1) != median_distance(many, many, seed=2)


# ---- the test by permutations


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_value_is_mmds_and_the_share_that_of_all_divisions(unbiased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TILE", 4)
    rng = np.random.default_rng(7)
    x, y = rng.standard_normal((5, 2)), 0.8 + rng.standard_normal((4, 2))
    kernel, matrix = KERNELS["rational quadratic"]
    found = mmd_test(x, y, kernel=kernel, unbiased=unbiased, permutations=4000)
    assert found.mmd == pytest.approx(mmd(x, y, kernel=kernel, unbiased=unbiased), abs=1e-13)
    pooled = np.concatenate([x, y])
    every = [
        by_definition(matrix, pooled[list(chosen)], np.delete(pooled, list(chosen), axis=0), unbiased)
        for chosen in combinations(range(9), 5)
    ]
    truth = np.mean(np.array(every) >= found.mmd - 1e-12)
    assert found.p_value == pytest.approx(truth, abs=4 * math.sqrt(truth / 4000))


def test_p_values_of_one_distribution_are_even_and_of_two_small() -> None:
    rng = np.random.default_rng(8)
    same = [mmd_test(*rng.standard_normal((2, 20, 2)), permutations=99, seed=seed).p_value for seed in range(100)]
    assert np.mean(same) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 100))
    assert np.mean(np.array(same) <= 0.1) < 0.1 + 4 * math.sqrt(0.09 / 100)
    x, y = rng.standard_normal((2, 50, 2))
    assert mmd_test(x, y + 2, permutations=199) == mmd_test(x, y + 2, permutations=199)
    assert mmd_test(x, y + 2, permutations=199).p_value == 1 / 200
    assert mmd_test(np.ones((5, 2)), np.ones((5, 2)), kernel=gaussian_kernel(1), permutations=19).p_value == 1


def test_permutations_come_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(9).standard_normal((2, 15, 3))
    whole = mmd_test(x, y, permutations=50, seed=3)
    monkeypatch.setattr(module, "_MARKS", 100)
    assert mmd_test(x, y, permutations=50, seed=3) == pytest.approx(whole)


def test_refusals() -> None:
    two = np.zeros((2, 3))
    for call, message in [
        (lambda: mmd(two, np.zeros((2, 4))), "3 in x and 4 in y"),
        (lambda: mmd(two[:1], two), "x: expected at least 2 samples, got 1"),
        (lambda: mmd(two, two * np.nan), "y holds 6 values that are NaN or Inf"),
        (lambda: mmd(two, two), "median distance is 0"),
        (lambda: mmd(two + 1e120, two, kernel=polynomial_kernel()), "discrepancy of x and y is .* too large for the kernel"),
        (lambda: mmd_test(two + 1e120, two, kernel=polynomial_kernel()), "too large for the kernel"),
        (lambda: mmd_test(two, two, kernel=energy_kernel(), permutations=0), "permutations: expected at least 1, got 0"),
        (lambda: gaussian_kernel(), r"at least one bandwidth, above 0, got \(\)"),
        (lambda: gaussian_kernel(1, -1), r"at least one bandwidth, above 0, got \(1, -1\)"),
        (lambda: rational_quadratic_kernel(math.nan), "at least one alpha, above 0"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidType, match=r"permutations: expected an integer, got 1\.5"):
        mmd_test(two, two, permutations=1.5)  # type: ignore[arg-type]
