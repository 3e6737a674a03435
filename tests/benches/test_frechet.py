"""The providers of the Frechet benches, which the harness's own test leaves out, as they are not in float32."""

from __future__ import annotations

import pytest
import torch

from ganfast.benches.harness import Case
from ganfast.benches.ops.frechet import accumulate, from_features, trace
from ganfast.benches.ops.frechet_curves import cases

CPU = torch.device("cpu")
CASES = [trace(20, 60, CPU), from_features(9, 30, CPU), from_features(60, 20, CPU), accumulate(700, 10, CPU)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_provider_finds_the_same(case: Case) -> None:
    expected = case.providers[case.stock[0]]()
    for name, call in case.providers.items():
        # roots of zeros that rounding moved to 1e-16 are what stock adds
        assert call() == pytest.approx(expected, rel=1e-6), name


def test_curves_have_points_of_two_axes() -> None:
    assert {case.name.partition("=")[0] for case in cases(CPU)} == {"width", "samples"}
