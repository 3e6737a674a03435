"""The nuclear norm by polar factors: on the CPU, where the same products run; it never ran on a GPU."""

from __future__ import annotations

import pytest
import torch
from matrices import EPS, random, with_singular_values
from torch import Tensor

from ganfast.ops import polar
from ganfast.ops.polar import TOLERANCE, nuclear_norm_bounds, nuclear_norm_by_polar

SPECTRA = {
    "equal": torch.ones(80),
    "flat": torch.linspace(1, 3, 80),
    "1e6": torch.logspace(0, -6, 80),
    "1e12": torch.logspace(0, -12, 80),
    "one": torch.tensor([2.0]),
    "rank 30": torch.linspace(2, 1, 30),
    "tiny": torch.logspace(-20, -24, 80),
    "huge": torch.logspace(20, 10, 80),
}


@pytest.mark.parametrize("shape", [(80, 80), (80, 131), (200, 80)], ids=str)
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_hold_and_are_close(name: str, shape: tuple[int, int]) -> None:
    values = SPECTRA[name].double()
    expected = values.sum().item()
    x = with_singular_values(values, *shape)
    below, above = (bound.item() for bound in nuclear_norm_bounds(x))
    # a rounding of the largest for each singular value; and the construction's own
    rounding = 10 * EPS * values.max().item() * 80
    assert below <= expected + rounding and expected - rounding <= above
    found = nuclear_norm_by_polar(x)
    assert found is not None and abs(found.item() - expected) <= TOLERANCE * expected


def test_a_random_matrix() -> None:
    x = random(150, 150)
    found = nuclear_norm_by_polar(x)
    assert found is not None and found.item() == pytest.approx(torch.linalg.svdvals(x).sum().item(), rel=1e-11)


@pytest.mark.parametrize("steps", [0, 3, 12, 20])
def test_what_is_not_there_yet_is_not_claimed(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = with_singular_values(torch.logspace(0, -6, 80).double(), 80, 80)
    monkeypatch.setattr(polar, "STEPS", polar.STEPS[:steps])
    assert nuclear_norm_by_polar(x) is None


@pytest.mark.parametrize(
    "x", [torch.zeros(70, 70), torch.full((70, 70), torch.nan), torch.eye(70) / 0], ids=["zero", "nan", "inf"]
)
def test_zero_and_nan_are_left_to_others(x: Tensor) -> None:
    assert nuclear_norm_by_polar(x.double()) is None
