"""Convolutions and what lies between two batch norms on a GPU: Triton's kernels, the choice of them, and whole chains."""

from __future__ import annotations

import copy
import math

import conv_norm_checks
import convolution_suite
import pytest
import torch
from conv_norm_checks import Case
from convolution_checks import CASES, REFUSED
from torch import nn

from ganfast.backends import triton_serves
from ganfast.nn import fuse
from ganfast.ops import conv_norm, convolution

pytestmark = [pytest.mark.tier(5), pytest.mark.skipif(not triton_serves(), reason="PyTorch's own are asked for")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# DCGAN-64's layers, at a batch whose tiles are the largest
LAYERS = [
    Case(64, 128, 512, 1, 4, 1, 0, True, norm=False),
    Case(64, 512, 256, 4, 4, 2, 1, True),
    Case(64, 128, 64, 16, 4, 2, 1, True, groups=2),
    Case(64, 64, 3, 32, 4, 2, 1, True),
    Case(64, 3, 64, 64, 4, 2, 1, False, norm=False),
    Case(64, 128, 256, 16, 4, 2, 1, False, groups=2, slope=0.2),
    Case(64, 512, 1, 4, 4, 1, 0, False, slope=0.2),
    Case(16, 128, 128, 32, 3, 1, 1, False, slope=0.2),
]


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As float32 is: the parity rule allows for no TF32, and what is chosen is always Triton's."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    monkeypatch.setattr(convolution.tuning, "fastest", lambda name, ways, device: "triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_products(case: convolution_suite.Case, dtype: torch.dtype) -> None:
    convolution_suite.check(case, dtype, "cuda")


def test_products_of_any_shape_and_layout() -> None:
    convolution_suite.check_kernels_and_maps_that_are_no_squares("cuda")
    convolution_suite.check_factors_lie_anyhow("cuda")


@pytest.mark.parametrize(("name", "arguments"), REFUSED)
def test_what_does_not_fit_is_refused(name: str, arguments: tuple[object, ...]) -> None:
    convolution_suite.check_refusal(name, arguments, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*conv_norm_checks.CASES, *LAYERS], ids=str)
def test_conv_norm(case: Case, dtype: torch.dtype) -> None:
    conv_norm_checks.check(case, dtype, "cuda")


def test_conv_norm_of_anything() -> None:
    conv_norm_checks.check_any_layout("cuda")
    conv_norm_checks.check_groups_are_alone("cuda")
    conv_norm_checks.check_far_from_zero("cuda")


@pytest.mark.parametrize("name", conv_norm_checks.REFUSED)
def test_conv_norm_that_does_not_fit_is_refused(name: str) -> None:
    conv_norm_checks.check_refusal(name, "cuda")


def test_tf32_is_used_where_pytorch_may(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(8, 64, 16, 16, device="cuda"), torch.randn(64, 64, 4, 4, device="cuda")
    exact = convolution.convolve_reference(x.double(), weight.double(), None, 2, 1)
    errors = []
    for precision in ("ieee", "tf32"):
        monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)
        found = convolution.convolve(x, weight, None, 2, 1)
        errors.append(((found - exact).abs().max() / exact.abs().max()).item())
    # 24 and 11 bits of factors; sums of 1024 terms
    assert errors[0] < 1e-5 < errors[1] < 2e-3


def test_a_captured_chain_gives_the_same_bits_again() -> None:
    at = conv_norm_checks.given(LAYERS[2], torch.bfloat16)
    forward, gradient, of_weight = (
        conv_norm_checks.moved(arguments, "cuda") for arguments in (at.forward(), at.input_gradient(), at.weight_gradient())
    )

    def step() -> list[torch.Tensor]:
        found = [*conv_norm.conv_norm(*forward), *conv_norm.conv_norm_input_gradient(*gradient)]
        return [*found, conv_norm.conv_norm_weight_gradient(*of_weight)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    forward[0].mul_(3).add_(0.1)
    graph.replay()
    assert all(map(torch.equal, captured, step()))


def test_what_is_not_known_is_pytorchs_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = torch.randn(3, 8, 10, 10, device="cuda"), torch.randn(16, 8, 3, 3, device="cuda")
    torch.nn.functional.conv2d(x, weight)  # cuDNN makes its handle
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = convolution.convolve(x, weight, None, 1, 0)
    graph.replay()
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("transposed", [True, False])
def test_whole_chains_are_the_plain_networks(transposed: bool) -> None:
    """In float32 by Triton, handed on from chain to chain, against the modules in float64 on the CPU."""
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d if transposed else nn.Conv2d
    layers: list[nn.Module] = []
    for inputs, outputs in ((16, 32), (32, 16)):
        layers += [conv(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    plain = nn.Sequential(*layers, conv(16, 3, 4, 2, 1)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fused = fuse(copy.deepcopy(plain)).cuda()
    x = torch.randn(8, 16, 16, 16)
    y = fused(x.cuda())
    expected = copy.deepcopy(plain).double()(x.double())
    # float32, three layers of sums of a few hundred terms
    torch.testing.assert_close(y.cpu().double(), expected, rtol=1e-4, atol=1e-4)
    y.square().sum().backward()
    double = plain.double()
    double(x.double()).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), double.parameters(), strict=True):
        scale = float(theirs.grad.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=0, atol=1e-3 * scale)  # type: ignore[union-attr]
    for ours, theirs in zip(fused.buffers(), double.buffers(), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs.double(), rtol=1e-4, atol=1e-4)


def test_more_than_2_to_the_31_values() -> None:
    """The second half of the batch, whose offsets begin past 2^31, is to the bit as if it were alone."""
    shape = (2, 16, 2**13, 2**13 + 2)
    if torch.cuda.mem_get_info()[0] < 8 * 2 * math.prod(shape):
        pytest.skip("a GPU with 35 GB free is needed")
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight = torch.randn(16, 16, 3, 3, device="cuda", dtype=torch.bfloat16)
    norm = torch.zeros(2, 16, device="cuda"), torch.ones(2, 16, device="cuda"), None, None, 1e-5, 0.2
    y, mean, var = conv_norm.conv_norm(x, weight, None, *norm, False, 1, 1, 2)
    alone = conv_norm.conv_norm(x[1:], weight, None, norm[0][1:], norm[1][1:], *norm[2:], False, 1, 1, 1)
    assert all(map(torch.equal, alone, (y[1:], mean[1:], var[1:])))
