"""The Triton kernels compiled for sm_80 and sm_90a without a GPU, against csrc/resources.csv. That they run is not shown here."""

from __future__ import annotations

import os

import pytest
from kernel_resources import Row, compile_triton, excesses, read

pytestmark = [
    pytest.mark.tier(4),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="under its interpreter Triton compiles nothing"),
]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return compile_triton()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_no_kernel_needs_more_than_is_recorded(architecture: str, rows: list[Row]) -> None:
    recorded = [row for row in read() if row.compiler.startswith("triton")]
    assert excesses(rows, recorded, architecture) == []
