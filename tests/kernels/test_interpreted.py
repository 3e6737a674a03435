"""The Triton kernels under Triton's interpreter, on the CPU, by the parity tests of each op.

Programs run one after another there, so races stay invisible; nothing here has run on a GPU.
"""

from __future__ import annotations

import functools

import batch_norm_suite
import conv_norm_suite
import convolution_suite
import gather_images_suite
import gradient_penalty_suite
import pytest
import spectral_norm_suite
from elsewhere import Outcomes

pytestmark = pytest.mark.tier(3)


@functools.cache
def outcomes(op: str) -> Outcomes:
    return Outcomes(op, "interpreted", TRITON_INTERPRET="1")


@pytest.mark.parametrize("case", spectral_norm_suite.suite("interpreted"))
def test_spectral_norm(case: str) -> None:
    outcomes("spectral_norm").expect(case)


@pytest.mark.parametrize("case", gradient_penalty_suite.suite("interpreted"))
def test_gradient_penalty(case: str) -> None:
    outcomes("gradient_penalty").expect(case)


@pytest.mark.parametrize("case", batch_norm_suite.suite("interpreted"))
def test_batch_norm(case: str) -> None:
    outcomes("batch_norm").expect(case)


@pytest.mark.parametrize("case", convolution_suite.suite("interpreted"))
def test_convolution(case: str) -> None:
    outcomes("convolution").expect(case)


@pytest.mark.parametrize("case", conv_norm_suite.suite("interpreted"))
def test_conv_norm(case: str) -> None:
    outcomes("conv_norm").expect(case)


@pytest.mark.parametrize("case", gather_images_suite.suite("interpreted"))
def test_gather_images(case: str) -> None:
    outcomes("gather_images").expect(case)
