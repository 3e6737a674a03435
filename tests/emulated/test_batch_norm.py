"""The CUDA kernels of batch norm and the code that launches them, on the CPU, under ASan and UBSan: see conftest.py."""

from __future__ import annotations

import pytest
from batch_norm_suite import suite
from elsewhere import Outcomes

pytestmark = pytest.mark.tier(2)


@pytest.mark.parametrize("case", suite("emulated"))
def test_parity(case: str, outcomes: Outcomes) -> None:
    outcomes.expect(case)
