"""Kernel distance: closed forms, and the numbers of torch-fidelity, torchmetrics and clean-fid."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from peers import cleanfid, torch_fidelity, torchmetrics
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics import mmd, polynomial_kernel
from ganfast.metrics.kernel_distance import kernel_distance


def features(count: int, width: int = 24, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) + offset


module = importlib.import_module("ganfast.metrics.kernel_distance")  # whose name the package gives to the function
X, Y = features(700), features(650, seed=1, offset=0.1)
FIDELITY = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


# each way of forming the kernel: once for all subsets, and anew for each
@pytest.mark.parametrize(("subsets", "size"), [(100, 300), (3, 40), (2, 2)])
@pytest.mark.parametrize("seed", [2020, 3])
def test_it_is_torch_fidelitys(subsets: int, size: int, seed: int) -> None:
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(
        X, Y, kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False, **FIDELITY
    )
    ours = kernel_distance(X, Y, subsets=subsets, subset_size=size, seed=seed)
    assert ours == pytest.approx(tuple(theirs.values()), rel=1e-10)


def test_the_defaults_are_torch_fidelitys() -> None:
    x, y = features(1100, 4, seed=2), features(1050, 4, seed=3, offset=0.3)
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(x, y, verbose=False)
    assert kernel_distance(x, y) == pytest.approx(tuple(theirs.values()), rel=1e-10)


def test_in_float32_they_agree_as_far_as_torch_fidelitys_sums_go() -> None:
    x, y = X.float(), Y.float()
    theirs = torch_fidelity.metric_kid.kid_features_to_metric(x, y, kid_subsets=10, kid_subset_size=500, verbose=False)
    # the peer's kernel and sums are in float32, of numbers 100 times the distance; ours are those of float64
    assert kernel_distance(x, y, subsets=10, subset_size=500) == pytest.approx(tuple(theirs.values()), rel=1e-4)
    assert kernel_distance(x, y, subsets=10, subset_size=500) == kernel_distance(
        x.double(), y.double(), subsets=10, subset_size=500
    )


def test_it_is_clean_fids_after_the_same_seed() -> None:
    np.random.seed(11)
    theirs = cleanfid.fid.kernel_distance(X.numpy(), Y.numpy(), num_subsets=20, max_subset_size=1000)
    mean, _ = kernel_distance(Y, X, subsets=20, subset_size=min(len(X), len(Y)), seed=11)
    assert mean == pytest.approx(theirs, rel=1e-10)


def test_it_is_torchmetrics_after_the_same_seed() -> None:
    metric = torchmetrics.image.kid.KernelInceptionDistance(feature=torch.nn.Identity(), subsets=20, subset_size=200)
    metric.update(X, real=True)
    metric.update(Y, real=False)
    torch.manual_seed(5)
    theirs = metric.compute()
    ours = kernel_distance(X, Y, subsets=20, subset_size=200, seed=torch.Generator().manual_seed(5))
    assert ours == pytest.approx(tuple(value.item() for value in theirs), rel=1e-10)


def test_both_ways_of_forming_the_kernel_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    once = kernel_distance(X, Y, subsets=30, subset_size=100)
    monkeypatch.setattr(module, "_mmd_of_all", lambda x, y: pytest.fail("expected one kernel for all subsets"))
    assert kernel_distance(X, Y, subsets=30, subset_size=300)  # few samples, many subsets
    monkeypatch.undo()
    monkeypatch.setattr(module, "_BLOCK", 64)
    assert kernel_distance(X, Y, subsets=30, subset_size=100) == pytest.approx(once, rel=1e-10)


def test_all_pairs_against_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = X[:90], Y[:70]
    k = lambda a, b: (a @ b.T / 24 + 1) ** 3  # noqa: E731
    within = sum((k(s, s).sum() - k(s, s).trace()) / (len(s) * (len(s) - 1)) for s in (x, y))
    expected = (within - 2 * k(x, y).mean()).item()
    assert mmd(x, y, kernel=polynomial_kernel()) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(module, "_BLOCK", 17)
    assert mmd(x, y, kernel=polynomial_kernel()) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(x[:70], y, subsets=1, subset_size=70)[0] == pytest.approx(
        mmd(x[:70], y, kernel=polynomial_kernel()), rel=1e-10
    )


def test_the_closed_form_of_two_gaussians() -> None:
    # of N(m, I) and N(0, I) in D dimensions, with t = x . x' / D: E t = |m|^2 / D, E t^2 and E t^3 by independence
    width, shift = 6, 0.5
    x, y = features(6000, width, seed=4, offset=shift), features(6000, width, seed=5)

    def kernel(p: float, q: float) -> float:  # E (t + 1)^3 of N(p 1, I) and N(q 1, I): moments of a sum of D products
        first, second = p * q, (1 + p * p) * (1 + q * q)
        third = (p**3 + 3 * p) * (q**3 + 3 * q)
        mean = width * first
        square = width * second + width * (width - 1) * first**2
        cube = width * third + 3 * width * (width - 1) * second * first + width * (width - 1) * (width - 2) * first**3
        return cube / width**3 + 3 * square / width**2 + 3 * mean / width + 1

    expected = kernel(shift, shift) + kernel(0, 0) - 2 * kernel(shift, 0)
    # the deviation of the estimate is 0.03 of its value, by 20 such draws
    assert mmd(x, y, kernel=polynomial_kernel()) == pytest.approx(expected, rel=0.12)


def test_samples_of_one_distribution_are_at_zero() -> None:
    mean, deviation = kernel_distance(features(2000, seed=6), features(2000, seed=7), subsets=50, subset_size=200)
    assert abs(mean) < deviation
    far, _ = kernel_distance(features(2000, seed=6), features(2000, seed=7, offset=0.5), subsets=50, subset_size=200)
    assert far > 10 * deviation


def test_refusals() -> None:
    with pytest.raises(
        InvalidValue, match=r"subset of 1000 is larger than a set: x has 700 samples and y 650; .*subset_size=650"
    ):
        kernel_distance(X, Y)
    with pytest.raises(InvalidValue, match="as many features on both sides, got 24 in x and 23 in y"):
        kernel_distance(X, Y[:, 1:], subset_size=10)
    with pytest.raises(InvalidValue, match="y: expected at least 2 samples, got 1"):
        kernel_distance(X, Y[:1], subset_size=2)
    with pytest.raises(InvalidValue, match="x holds 24 values that are NaN or Inf"):
        kernel_distance(torch.cat([X, X[:1] * torch.nan]), Y, subset_size=10)
    with pytest.raises(InvalidValue, match="too large to cube"):
        kernel_distance(X * 1e100, Y, subset_size=10)
    for options in ({"subsets": 0}, {"subset_size": 1}, {"seed": 2**32}):
        with pytest.raises(InvalidValue, match="expected"):
            kernel_distance(X, Y, **{"subset_size": 10, **options})
