"""Precision, recall, density and coverage: known overlaps, ties, and the field's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import torch_fidelity
from scipy.spatial.distance import cdist
from torch import Tensor

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics import prdc as module
from ganfast.metrics.arrays import Array
from ganfast.metrics.prdc import Manifold, precision_recall_density_coverage


def features(count: int, width: int = 16, seed: int = 0, offset: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) + offset


REAL, FAKE = features(600), features(500, seed=1, offset=0.4)


def by_definition(real: Array, fake: Array, k: int, closed: bool = True) -> dict[str, float]:
    """Naeem et al.'s formulas, in NumPy and SciPy's distances, which are differences too."""
    x, y = (np.asarray(side, dtype=np.float64) for side in (real, fake))
    (inside_x, inside_y), across = (cdist(side, side) for side in (x, y)), cdist(x, y)
    reach_x, reach_y = (np.sort(inside, axis=1)[:, k] for inside in (inside_x, inside_y))
    less = np.less_equal if closed else np.less
    in_real, in_fake = less(across, reach_x[:, None]), less(across, reach_y)
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_fake.any(axis=1).mean(),
        "density": in_real.sum(axis=0).mean() / k,
        "coverage": in_real.any(axis=1).mean(),
    }


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (16, torch.float64), (600, torch.float32)], ids=str)
def test_it_is_the_definition(k: int, width: int, dtype: torch.dtype, closed: bool) -> None:
    real, fake = features(300, width).to(dtype), features(250, width, seed=1, offset=0.1).to(dtype)
    found = precision_recall_density_coverage(real, fake, k=k, closed=closed)
    assert found == pytest.approx(by_definition(real, fake, k, closed), abs=1e-12)
    assert 0.05 < found["precision"] < 1  # that there is something to get wrong


@pytest.mark.parametrize("save_cpu_ram", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_precision_and_recall_are_torch_fidelitys(save_cpu_ram: bool, dtype: torch.dtype) -> None:
    real, fake = REAL.to(dtype), FAKE.to(dtype)
    theirs = torch_fidelity.metric_prc.prc_features_to_metric(fake, real, save_cpu_ram=save_cpu_ram, verbose=False)
    ours = precision_recall_density_coverage(real, fake, k=3)
    # their shares are means in float32
    assert ours["precision"] == pytest.approx(theirs["precision"], rel=1e-7)
    assert ours["recall"] == pytest.approx(theirs["recall"], rel=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(6, 30), st.integers(6, 30), st.integers(0, 10**6), st.booleans())
def test_ties_are_decided_as_by_the_definition(k: int, width: int, n: int, m: int, seed: int, closed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    real, fake = (torch.randint(-2, 3, (count, width), generator=generator).double() for count in (n, m))
    found = precision_recall_density_coverage(real, fake, k=k, closed=closed)
    assert found == pytest.approx(by_definition(real, fake, k, closed), abs=1e-12)


@pytest.mark.parametrize("width", [2, 16, 700])
@pytest.mark.parametrize("k", [1, 5])
def test_identical_sets(width: int, k: int) -> None:
    x = features(200, width).float()
    found = precision_recall_density_coverage(x, x.clone(), k=k)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)
    assert found["density"] == pytest.approx((k + 1) / k)  # each ball holds its centre and, on its surface, the k-th neighbour
    repeated = x[torch.arange(300) % 30]
    found = precision_recall_density_coverage(repeated, repeated.flip(0), k=k)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


def test_features_that_are_all_alike() -> None:
    alike = torch.ones(50, 9)
    assert precision_recall_density_coverage(alike, alike)["precision"] == 1
    assert precision_recall_density_coverage(alike, alike + 1) == dict.fromkeys(("precision", "recall", "density", "coverage"), 0)


def test_mixtures_of_known_overlap() -> None:
    # clusters so far apart that balls stay within theirs: real in 0 .. 3, fake in 2 .. 6, by different numbers
    def mixture(counts: dict[int, int], seed: int) -> Tensor:
        return torch.cat([features(count, 2, seed + at, offset=1e4 * at) for at, count in counts.items()])

    real, fake = mixture({0: 100, 1: 200, 2: 300, 3: 400}, 0), mixture({2: 500, 3: 250, 5: 150, 6: 100}, 50)
    found = precision_recall_density_coverage(real, fake)
    # of 750 fake samples in shared clusters and 700 real ones, those out in the tails lie in no ball: a few in a hundred
    assert 0.97 * 0.75 < found["precision"] <= 0.75
    assert 0.97 * 0.7 < found["recall"] <= 0.7
    shared = precision_recall_density_coverage(mixture({2: 300, 3: 400}, 0), mixture({2: 500, 3: 250}, 50))
    assert found["precision"] * 1000 == pytest.approx(shared["precision"] * 750)
    assert found["recall"] * 1000 == pytest.approx(shared["recall"] * 700)
    assert found["coverage"] * 1000 == pytest.approx(shared["coverage"] * 700)
    assert found["density"] * 1000 == pytest.approx(shared["density"] * 750)


def test_the_expected_values_of_one_distribution() -> None:
    # Naeem et al., lemmas 1 and 2: density 1 and coverage 1 - (M - 1) ... (M - k) / (2 M - 1) ... (2 M - k) for N = M, any width
    found = [precision_recall_density_coverage(features(400, 8, 2 * s), features(400, 8, 2 * s + 1)) for s in range(12)]
    below = np.prod([(400 - i) / (800 - i) for i in range(1, 6)])
    # standard errors over the draws: 0.01 of density, 0.003 of coverage
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.04)
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(1 - below, abs=0.012)


def test_a_real_set_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Manifold.of(REAL, 3)
    whole = precision_recall_density_coverage(REAL, FAKE, k=3)
    both = real, Manifold.of(FAKE.float(), 3)
    assert precision_recall_density_coverage(REAL.float(), FAKE.float(), k=3) == pytest.approx(whole, abs=1e-12)
    searched = []
    monkeypatch.setattr(module, "kth_distances", lambda x, k, kept=module.kth_distances: searched.append(len(x)) or kept(x, k))
    assert precision_recall_density_coverage(real, FAKE, k=3) == whole
    assert searched == [len(FAKE)]
    assert precision_recall_density_coverage(*both, k=3) == pytest.approx(whole, abs=1e-12)  # float64 against float32
    assert searched == [len(FAKE)]
    with pytest.raises(InvalidValue, match="real is a manifold of k=3, and k=5 is asked for"):
        precision_recall_density_coverage(real, FAKE)


def test_arrays_and_half_precision() -> None:
    real, fake = REAL.half(), FAKE.bfloat16()
    expected = by_definition(real.double(), fake.double(), 5)
    assert precision_recall_density_coverage(real, fake) == pytest.approx(expected, abs=1e-12)
    assert precision_recall_density_coverage(real.numpy(), fake.float().numpy()) == pytest.approx(expected, abs=1e-12)


def test_refusals() -> None:
    bad = FAKE.clone()
    bad[7, 0] = torch.inf
    for real, fake, message in (
        (REAL[:5], FAKE, "real: a 5-th neighbour needs at least 6 samples, got 5: give more, or lower k"),
        (REAL, FAKE[:3], "fake: a 5-th neighbour needs at least 6 samples, got 3"),
        (REAL, FAKE[:1], "fake: expected at least 2 samples, got 1"),
        (REAL, bad, "fake holds 1 values that are NaN or Inf"),
        (REAL, FAKE[:, 1:], "as many features on both sides, got 16 in real and 15 in fake"),
    ):
        with pytest.raises(InvalidValue, match=message):
            precision_recall_density_coverage(real, fake)
    with pytest.raises(InvalidValue, match="k: expected at least 1, got 0"):
        precision_recall_density_coverage(REAL, FAKE, k=0)
    with pytest.raises(InvalidType, match="fake: expected"):
        precision_recall_density_coverage(REAL, FAKE + 1j)


def test_open_balls_of_equal_samples_hold_nothing() -> None:
    ones = np.ones((9, 4))
    assert set(precision_recall_density_coverage(ones, ones, closed=False).values()) == {0}
