from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import gaussian_kde

from ganfast.errors import InvalidValue
from ganfast.metrics import parzen, rows
from ganfast.metrics.parzen import SIGMAS, parzen_log_likelihood


def direct(samples: np.ndarray, test: np.ndarray, sigma: float) -> np.ndarray:
    squares = ((test[:, None] - samples[None]) ** 2).sum(axis=2)
    return (
        logsumexp(-squares / (2 * sigma**2), axis=1)
        - np.log(len(samples))
        - samples.shape[1] * np.log(sigma * math.sqrt(2 * np.pi))
    )


def test_it_is_the_sum_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    samples, test = 5 + rng.random((300, 40)), 5 + rng.random((70, 40))
    found = parzen_log_likelihood(samples, test, sigma=0.2)
    truth = direct(samples, test, 0.2)
    assert found.mean == pytest.approx(truth.mean(), rel=1e-10)
    assert found.standard_error == pytest.approx(truth.std() / math.sqrt(70), rel=1e-9)
    assert found.sigma == 0.2
    singly = parzen_log_likelihood(torch.from_numpy(samples).float(), torch.from_numpy(test).float(), sigma=0.2)
    assert singly.mean == pytest.approx(truth.mean(), rel=1e-5)  # what float32 keeps of the numbers


def test_it_is_scipys_kernel_density() -> None:
    rng = np.random.default_rng(0)
    samples, test = rng.standard_normal((2, 200, 3))
    kde = gaussian_kde(samples.T, bw_method=0.7)
    # scipy's windows have the samples' covariance: in its coordinates they are round
    root = np.linalg.cholesky(kde.covariance)
    log_volume = np.log(np.diag(root)).sum()
    found = parzen_log_likelihood(np.linalg.solve(root, samples.T).T, np.linalg.solve(root, test.T).T, sigma=1)
    assert found.mean - log_volume == pytest.approx(kde.logpdf(test.T).mean(), rel=1e-10)


def test_many_samples_of_a_gaussian_approach_the_wider_gaussians_likelihood() -> None:
    rng = np.random.default_rng(3)
    samples, test = rng.standard_normal((8_000, 1)), rng.standard_normal((2_000, 1))
    found = parzen_log_likelihood(samples, test, sigma=0.5)
    wide = 1 + 0.5**2
    truth = -0.5 * math.log(2 * math.pi * wide) - 1 / (2 * wide)
    # the test data's own standard error; the samples' is less, since there are more
    assert abs(found.mean - truth) < 4 * found.standard_error
    assert found.standard_error == pytest.approx(1 / (wide * math.sqrt(2 * 2_000)), rel=0.15)  # known to 4 %: kurtosis is 15


def test_far_data_do_not_underflow() -> None:
    found = parzen_log_likelihood(np.zeros((2, 100)), np.full((3, 100), 40.0), sigma=0.1)
    assert found.mean == pytest.approx(-100 * (40**2 / 0.02 + math.log(0.1 * math.sqrt(2 * math.pi))), rel=1e-12)
    assert found.standard_error == 0


def test_validation_chooses_the_likeliest_of_ten_widths() -> None:
    np.testing.assert_allclose(SIGMAS, np.logspace(-1, 0, 10))
    rng = np.random.default_rng(4)
    samples, test, held = 0.4 * rng.standard_normal((3, 500, 5))
    found = parzen_log_likelihood(samples, test, validation=held)
    means = [direct(samples, held, sigma).mean() for sigma in SIGMAS]
    assert found.sigma == SIGMAS[int(np.argmax(means))]
    assert SIGMAS[0] < found.sigma < SIGMAS[-1]
    assert found == parzen_log_likelihood(samples, test, sigma=found.sigma)
    assert parzen_log_likelihood(samples, test, validation=held, sigmas=[0.9, 0.1]).sigma == 0.1 + 0.8 * (means[9] > means[0])


def test_images_are_pixels_between_zero_and_one() -> None:
    rng = np.random.default_rng(0)
    samples, test, held = rng.integers(0, 256, (3, 20, 6, 5, 3), dtype=np.uint8)
    floats = [(x.reshape(20, -1) / 255) for x in (samples, test, held)]
    found = parzen_log_likelihood(samples, torch.from_numpy(test), validation=held)
    assert found == pytest.approx(parzen_log_likelihood(floats[0], floats[1], validation=floats[2]))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, test, held = np.random.default_rng(0).random((3, 57, 4))
    whole = parzen_log_likelihood(samples, test, validation=held)
    monkeypatch.setattr(rows, "_CELLS", 200)
    seen = []
    squared = rows.squared_distances
    monkeypatch.setattr(parzen, "squared_distances", lambda x, y: seen.append(len(x)) or squared(x, y))
    assert parzen_log_likelihood(samples, test, validation=held) == pytest.approx(whole, rel=1e-12)
    assert max(seen) == 3


def test_refusals() -> None:
    two = np.zeros((2, 3))
    for call, message in [
        (lambda: parzen_log_likelihood(two, two), "expected validation data to choose sigma by, or sigma"),
        (lambda: parzen_log_likelihood(two, np.zeros((2, 4)), sigma=1), "3 in samples and 4 in test"),
        (lambda: parzen_log_likelihood(two, two, validation=np.zeros((2, 4))), "3 in samples and 4 in validation"),
        (lambda: parzen_log_likelihood(two[:1], two, sigma=1), "samples: expected at least 2 samples, got 1"),
        (lambda: parzen_log_likelihood(two, two * np.nan, sigma=1), "test holds 6 values that are NaN or Inf"),
        (lambda: parzen_log_likelihood(two, two, sigma=0), r"sigmas above 0, at least one, got \[0\]"),
        (lambda: parzen_log_likelihood(two, two, sigma=1e-200), r"sigmas above 0, at least one, got \[1e-200\]"),
        (lambda: parzen_log_likelihood(two, two, validation=two, sigmas=[]), r"at least one, got \[\]"),
        (
            lambda: parzen_log_likelihood(np.zeros((2, 3, 3)), two, sigma=1),
            r"samples: expected features \(N, D\), got \(2, 3, 3\)",
        ),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
