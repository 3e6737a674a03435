"""Convolutions against PyTorch's in float64, and what PyTorch asks of an op: on the reference and on every backend built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cases import BATCH_LAYOUTS
from convolution_checks import CASES, REFUSED, Case
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck

from ganfast.ops.convolution import convolution, convolution_weight_gradient, convolve, transposed_convolve

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("backend")
SMALL = Case(2, 2, 3, 4, 4, 2, 1)


def both(case: Case) -> list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Ours, PyTorch's, and x, weight, bias, for a convolution and for a transposed one."""
    big, small, weight = case.make(DOUBLE)
    a, b = torch.randn(case.a, dtype=DOUBLE), torch.randn(case.b, dtype=DOUBLE)
    steps = case.stride, case.padding
    return [
        (lambda *t: convolution(*t, *steps), lambda *t: F.conv2d(*t, *steps), (big, weight, a)),
        (
            lambda *t: convolution(*t, *steps, case.output_padding),
            lambda *t: F.conv_transpose2d(*t, *steps, case.output_padding),
            (small, weight, b),
        ),
    ]


@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_values_and_gradients_are_pytorchs(case: Case, layout: str) -> None:
    for ours, torchs, given in both(case):
        inputs = [BATCH_LAYOUTS[layout](t).requires_grad_() for t in given[:2]] + [given[2].requires_grad_()]
        y, expected = ours(*inputs), torchs(*inputs)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), rtol=1e-9, atol=1e-9
        )


def test_gradients_of_the_first_and_second_order() -> None:
    for ours, _, inputs in both(SMALL):
        variables = tuple(t.requires_grad_() for t in inputs)
        assert torch.autograd.gradcheck(ours, variables)
        assert torch.autograd.gradgradcheck(ours, variables)


def test_the_weight_gradient_is_differentiable_too() -> None:
    big, small, _ = SMALL.make(DOUBLE)
    inputs = small.requires_grad_(), big.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, b: convolution_weight_gradient(s, b, 4, 4, 2, 1), inputs)
    assert torch.autograd.gradgradcheck(lambda s, b: convolution_weight_gradient(s, b, 4, 4, 2, 1), inputs)


@pytest.mark.parametrize("slope", [0.0, 0.2, -0.1])
@pytest.mark.parametrize("output_padding", [None, 0])
def test_an_activation_in_the_end(output_padding: int | None, slope: float) -> None:
    big, small, weight = SMALL.make(DOUBLE)
    x, bias = (big, torch.randn(SMALL.a, dtype=DOUBLE)) if output_padding is None else (small, torch.randn(SMALL.b, dtype=DOUBLE))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolution(x, weight, bias, 2, 1, output_padding, slope)

    z = F.conv2d(*inputs, 2, 1) if output_padding is None else F.conv_transpose2d(*inputs, 2, 1)
    torch.testing.assert_close(ours(*inputs), F.leaky_relu(z, slope), rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


def test_maps_in_fewer_bits_than_the_weight() -> None:
    """As of a weight that is cast, which gets its gradient in its own type."""
    big, small, weight = SMALL.make(torch.bfloat16)
    weight = (weight.float() * 1.003).requires_grad_()
    for x, output_padding in ((big, None), (small, 0)):
        x = x.requires_grad_()
        y = convolution(x, weight, None, 2, 1, output_padding)
        cast = convolution(x, weight.bfloat16(), None, 2, 1, output_padding)
        # each of the two may go a way of its own, with an error of up to four and a half roundings to bfloat16 (the op's page)
        near = 9 * 2**-9
        torch.testing.assert_close(y, cast, rtol=0, atol=near * float(cast.detach().abs().max()))
        upstream = torch.randn_like(y)
        of_x, of_weight = torch.autograd.grad(y, (x, weight), upstream)
        expected_x, expected_weight = torch.autograd.grad(cast, (x, weight), upstream)
        assert of_weight.dtype == torch.float32
        for found, expected in ((of_x, expected_x), (of_weight, expected_weight)):
            torch.testing.assert_close(found, expected, rtol=0, atol=near * float(expected.abs().max()))


def test_other_types_that_differ_are_refused() -> None:
    big, _, weight = SMALL.make(torch.float32)
    for one, other in ((DOUBLE, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, DOUBLE)):
        with pytest.raises(RuntimeError, match="type"):
            convolution(big.to(one), weight.to(other), None, 2, 1)
        with pytest.raises(RuntimeError, match="type"):
            convolution(big.to(one)[:, : weight.shape[0]], weight.to(other), None, 2, 1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    big, small, weight = (t.requires_grad_() for t in SMALL.make(dtype))
    bias = torch.randn(SMALL.a, requires_grad=True)
    opcheck(torch.ops.ganfast.convolve.default, (big, weight, bias, 2, 1), rtol=1e-2, atol=1e-2)
    opcheck(torch.ops.ganfast.transposed_convolve.default, (small, weight, None, 2, 1, *SMALL.extents), rtol=1e-2, atol=1e-2)
    opcheck(torch.ops.ganfast.convolution_weight_gradient.default, (small, big, 4, 4, 2, 1), rtol=1e-2, atol=1e-2)
    wide = weight.detach().float().requires_grad_()
    opcheck(torch.ops.ganfast.convolve.default, (big, wide, bias, 2, 1, 0.2), rtol=1e-2, atol=1e-2)
    opcheck(torch.ops.ganfast.transposed_convolve.default, (small, wide, None, 2, 1, *SMALL.extents, 0.0), rtol=1e-2, atol=1e-2)
    arguments = small, big, 4, 4, 2, 1, torch.float32
    opcheck(torch.ops.ganfast.convolution_weight_gradient.default, arguments, rtol=1e-2, atol=1e-2)


def test_it_compiles_in_one_graph() -> None:
    for ours, _, inputs in both(SMALL):
        x, weight, bias = (t.requires_grad_() for t in inputs)
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        y, expected = compiled(x, weight, bias), ours(x, weight, bias)
        torch.testing.assert_close(y, expected)
        upstream = torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(y, (x, weight, bias), upstream), torch.autograd.grad(expected, (x, weight, bias), upstream)
        )


def test_transforms_and_dual_numbers_go_through() -> None:
    for ours, torchs, (x, weight, bias) in both(SMALL):
        gradient = torch.func.grad(lambda w, f=ours, x=x, bias=bias: f(x, w, bias).square().sum())(weight)
        expected = torch.func.grad(lambda w, f=torchs, x=x, bias=bias: f(x, w, bias).square().sum())(weight)
        torch.testing.assert_close(gradient, expected)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, x.flip(0)), weight, bias)).tangent
        torch.testing.assert_close(tangent, torchs(x.flip(0), weight, None))


def test_frozen_factors_get_no_gradient_and_cost_none() -> None:
    for ours, _, (x, weight, bias) in both(SMALL):
        y = ours(x.requires_grad_(), weight, bias)
        y.sum().backward()
        assert (x.grad is not None, weight.grad, bias.grad) == (True, None, None)


@pytest.mark.parametrize(("name", "arguments"), REFUSED)
def test_what_does_not_fit_is_refused(name: str, arguments: tuple[object, ...]) -> None:
    ops = {"convolve": convolve, "transposed_convolve": transposed_convolve, "weight": convolution_weight_gradient}
    with pytest.raises(RuntimeError):
        ops[name](*arguments)
