"""The Triton kernels under Triton's interpreter, on the CPU, by the parity tests of the op.

Programs run one after another there, so races stay invisible; nothing here has run on a GPU.
"""

from __future__ import annotations

import pytest
from elsewhere import Outcomes
from spectral_norm_suite import suite

pytestmark = pytest.mark.tier(3)


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return Outcomes("interpreted", TRITON_INTERPRET="1")


@pytest.mark.parametrize("case", suite("interpreted"))
def test_parity(case: str, outcomes: Outcomes) -> None:
    outcomes.expect(case)
