"""The CUDA kernels of gradient penalty and the code that launches them, on the CPU, under ASan and UBSan: see conftest.py."""

from __future__ import annotations

import pytest
from elsewhere import Outcomes
from gradient_penalty_suite import suite

pytestmark = pytest.mark.tier(2)


@pytest.mark.parametrize("case", suite("emulated"))
def test_parity(case: str, outcomes: Outcomes) -> None:
    outcomes.expect(case)
