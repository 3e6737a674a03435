"""The CUDA kernel of Adam and the code that launches it, on the CPU, under ASan and UBSan: see conftest.py."""

from __future__ import annotations

import pytest
from adam_suite import suite
from elsewhere import Outcomes

pytestmark = pytest.mark.tier(2)


@pytest.mark.parametrize("case", suite("emulated"))
def test_parity(case: str, outcomes: Outcomes) -> None:
    outcomes.expect(case)
