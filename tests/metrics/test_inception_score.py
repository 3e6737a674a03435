"""Inception Score: closed forms, and torch-fidelity's and torchmetrics' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peers import torch_fidelity, torchmetrics
from torch import Tensor

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.inception_score import inception_score


def logits(count: int, classes: int = 20, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, classes, generator=generator) + 1).to(dtype)


@pytest.mark.parametrize(("count", "splits"), [(1000, 10), (1003, 10), (57, 7), (40, 1)])
@pytest.mark.parametrize(("seed", "shuffle"), [(2020, True), (7, True), (0, False)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_torch_fidelitys(count: int, splits: int, seed: int, shuffle: bool, dtype: torch.dtype) -> None:
    values = logits(count, dtype=dtype)
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(values, splits, shuffle, seed)
    mean, deviation = inception_score(values, splits=splits, shuffle=shuffle, seed=seed)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-13)


def test_the_defaults_are_torch_fidelitys() -> None:
    values = logits(5000)
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(values)
    assert inception_score(values) == pytest.approx(tuple(theirs.values()), rel=1e-12)


def test_it_is_torchmetrics_after_the_same_seed() -> None:
    values = logits(600)
    metric = torchmetrics.image.inception.InceptionScore(feature=torch.nn.Identity(), splits=10)
    metric.update(values)
    torch.manual_seed(5)
    theirs = metric.compute()
    ours = inception_score(values, seed=torch.Generator().manual_seed(5), ddof=1)
    assert ours == pytest.approx(tuple(value.item() for value in theirs), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_each_class_for_certain_and_equally_often_scores_their_number(classes: int) -> None:
    certain = 1e5 * torch.eye(classes).repeat(3, 1)
    assert inception_score(certain, splits=3, shuffle=False) == pytest.approx((classes, 0), rel=1e-12)


def test_a_class_that_nothing_is_assigned_to_does_no_harm() -> None:
    certain = 1e5 * torch.eye(10)[:4].repeat(5, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(4, rel=1e-12)


def test_samples_that_are_alike_score_one() -> None:
    assert inception_score(logits(1).expand(50, 20)) == pytest.approx((1, 0), abs=1e-13)


def test_two_kinds_of_samples_by_hand() -> None:
    p, q = np.array([0.9, 0.1]), np.array([0.3, 0.7])
    middle = (p + q) / 2
    expected = math.exp((np.sum(p * np.log(p / middle)) + np.sum(q * np.log(q / middle))) / 2)
    assert inception_score(np.log(np.stack([p, q] * 6)) + 50, splits=2, shuffle=False)[0] == pytest.approx(expected, rel=1e-12)


def test_what_cannot_be_scored_is_refused() -> None:
    bad = logits(30)
    bad[3, 1] = torch.nan
    for wrong, message in (
        (bad, "logits holds 1 values that are NaN or Inf, of 600"),
        (logits(1), "logits: expected at least 2 samples, got 1"),
        (logits(9), "10 splits need as many samples, got 9: ask for fewer splits"),
        (logits(9)[0], r"logits: expected features \(N, D\), got \(20,\)"),
    ):
        with pytest.raises(InvalidValue, match=message):
            inception_score(wrong)
    for options, message in (({"splits": 0}, "splits"), ({"seed": -1}, "seed"), ({"ddof": 10}, "ddof")):
        with pytest.raises(InvalidValue, match=message):
            inception_score(logits(30), **options)
    with pytest.raises(InvalidType, match="logits: expected"):
        inception_score(logits(30) + 1j)
