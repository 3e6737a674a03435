"""The ops between two batch norms against PyTorch's modules in float64, and what PyTorch asks of an op: on the reference and on
every backend built.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv_norm_checks import CASES, EPS, REFUSED, Case, check_refusal, given, wide
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck

from ganfast.ops import conv_norm as page
from ganfast.ops.conv_norm import conv_norm, conv_norm_input_gradient, conv_norm_weight_gradient
from ganfast.ops.convolution import choice

pytestmark = pytest.mark.usefixtures("backend")
DOUBLE = torch.float64
SMALL = Case(4, 2, 3, 3, 3, 2, 1, True, groups=2, slope=0.2)
SMALL_CRITIC = Case(4, 3, 2, 4, 4, 2, 1, False, groups=2, slope=0.2)


def variables(case: Case) -> list[Tensor]:
    """x, weight, bias, gamma, beta in float64."""
    at = given(case, DOUBLE)
    tensors = at.x, at.weight, at.bias, *at.norm[2:4]
    return [t.detach().double().requires_grad_() for t in tensors if t is not None]


def ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor, gamma: Any = None, beta: Any = None) -> Tensor:
    """y of x whose statistics an op before has given: constants, which carry no gradient."""
    identity = torch.eye(case.inputs, dtype=x.dtype).view(case.inputs, case.inputs, 1, 1)
    with torch.no_grad():
        _, mean, var = conv_norm(x, identity, None, None, None, None, None, EPS, 1.0, False, 1, 0, case.groups)
    y: Tensor = conv_norm(x, weight, bias, mean, var, gamma, beta, EPS, case.slope, *case.steps, case.groups)[0]
    return y


def torchs(case: Case, x: Tensor, weight: Tensor, bias: Tensor, gamma: Any = None, beta: Any = None, norm: Any = None) -> Tensor:
    norm = norm or (lambda part, gamma, beta: F.batch_norm(part, None, None, gamma, beta, True, 0.1, EPS))
    halves = [norm(part, gamma, beta) for part in x.chunk(case.groups)]
    a = F.leaky_relu(torch.cat(halves), case.slope)
    convolve = F.conv_transpose2d if case.transposed else F.conv2d
    return convolve(a, weight, bias, case.stride, case.padding)


def by_hand(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Batch norm in operations that have all their derivatives; PyTorch's own does not have its third one."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    return (x - mean) * (var + EPS).rsqrt() * gamma.view(-1, 1, 1) + beta.view(-1, 1, 1)


# ---- values and gradients


@pytest.mark.parametrize("case", [case for case in CASES if case.norm], ids=str)
def test_it_is_batch_norm_activation_and_convolution(case: Case) -> None:
    inputs = variables(case)
    y, expected = ours(case, *inputs), torchs(case, *inputs)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(out, inputs, upstream) for out in (y, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_statistics_are_the_mean_and_the_biased_variance_of_the_output(case: Case) -> None:
    arguments = wide(given(case, DOUBLE).forward())
    y, mean, var = conv_norm(*arguments)
    for i, part in enumerate(y.chunk(case.groups)):
        values = part.transpose(0, 1).flatten(1)
        torch.testing.assert_close(mean[i], values.mean(1))
        torch.testing.assert_close(var[i], values.var(1, correction=0))
    alone, *none = conv_norm(*arguments[:-1], 0)
    assert torch.equal(alone, y) and [t.shape for t in none] == [(0, case.outputs)] * 2


def test_without_a_norm_it_is_the_convolution() -> None:
    for case in (SMALL, SMALL_CRITIC):
        x, weight, bias, *_ = variables(case)
        y, mean, var = conv_norm(x, weight, bias, None, None, None, None, EPS, 0.0, *case.steps, 2)
        convolve = F.conv_transpose2d if case.transposed else F.conv2d
        expected = convolve(x, weight, bias, case.stride, case.padding)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        assert not mean.requires_grad and not var.requires_grad
        upstream = torch.randn_like(y)
        found, wanted = (torch.autograd.grad(out, (x, weight, bias), upstream) for out in (y, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [SMALL, SMALL_CRITIC], ids=str)
def test_gradients_of_the_first_and_second_order(case: Case) -> None:
    inputs = variables(case)
    assert torch.autograd.gradcheck(partial(ours, case), inputs)
    assert torch.autograd.gradgradcheck(partial(ours, case), inputs)


@pytest.mark.parametrize("case", [SMALL, SMALL_CRITIC], ids=str)
def test_gradients_of_the_third_order(case: Case) -> None:
    found = []
    inputs = variables(case)
    directions = [torch.randn(inputs[0].shape, dtype=DOUBLE) for _ in range(3)]
    for function in (ours, partial(torchs, norm=by_hand)):
        value: Any = function(case, *inputs).square().sum()
        for direction in directions:
            first, *_ = torch.autograd.grad(value, inputs[:2], create_graph=True)
            value = (first * direction).sum()
        found.append(value)
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-8)


def test_what_is_frozen_gets_no_gradient() -> None:
    for frozen in range(5):
        inputs = variables(SMALL)
        inputs[frozen] = inputs[frozen].detach()
        others = [t for t in inputs if t.requires_grad]
        results = [torch.autograd.grad(function(SMALL, *inputs).sin().sum(), others) for function in (ours, torchs)]
        torch.testing.assert_close(*results, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parameters_get_gradients_of_their_type(dtype: torch.dtype) -> None:
    at = given(SMALL, dtype)
    tensors = [t.requires_grad_() for t in (at.x, at.weight, at.bias, at.norm[2], at.norm[3])]
    y, mean, var = conv_norm(*at.forward())
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)
    y.sum().backward()
    assert [t.grad.dtype for t in tensors] == [dtype, dtype, *[torch.float32] * 3]  # type: ignore[union-attr]


# ---- what PyTorch asks of an op


def test_opcheck() -> None:
    quick = "test_schema", "test_autograd_registration", "test_faketensor"
    for case in (SMALL, SMALL_CRITIC, Case(2, 3, 2, 4, 3, 1, 1, False, norm=False)):
        at = given(case, torch.float32)
        opcheck(conv_norm.overload, at.forward(), test_utils=quick)
        for t in (at.x, at.weight, at.bias, *at.norm[2:4]):
            if t is not None:
                t.requires_grad_()
        checks = (*quick, "test_aot_dispatch_dynamic") if case == SMALL else quick
        opcheck(conv_norm.overload, at.forward(), rtol=1e-3, atol=1e-3, test_utils=checks)
        if case.norm:
            opcheck(conv_norm_input_gradient.overload, at.input_gradient(), test_utils=quick)
            opcheck(conv_norm_weight_gradient.overload, at.weight_gradient(), test_utils=quick)


def test_it_compiles_in_one_graph() -> None:
    inputs = variables(SMALL)
    y, expected = torch.compile(partial(ours, SMALL), backend="aot_eager", fullgraph=True)(*inputs), ours(SMALL, *inputs)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(out, inputs, upstream) for out in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
def test_transforms_and_dual_numbers_go_through() -> None:
    inputs = [t.detach() for t in variables(SMALL)]
    gradient = torch.func.grad(lambda x: ours(SMALL, x, *inputs[1:]).square().sum())(inputs[0])
    expected = torch.func.grad(lambda x: torchs(SMALL, x, *inputs[1:]).square().sum())(inputs[0])
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)
    tangents = []
    for function in (ours, torchs):
        with forward_ad.dual_level():
            point = forward_ad.make_dual(inputs[0], inputs[0].flip(0))
            tangents.append(forward_ad.unpack_dual(function(SMALL, point, *inputs[1:])).tangent)
    torch.testing.assert_close(*tangents, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    check_refusal(name)


# ---- CUDA's choice


def test_cuda_chooses_by_measurement_and_asks_pytorch_where_triton_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fastest(name: str, ways: dict[str, Any], device: torch.device) -> str:
        asked.append((name, list(ways)))
        return "triton"

    at = given(CASES[1], torch.float32)
    monkeypatch.setattr(page.products.tuning, "fastest", fastest)
    monkeypatch.delenv("GANFAST_CUDA", raising=False)
    op = choice("an_op", lambda *_: "torch", lambda *_: "triton", page._same_groups)
    assert op(*at.forward()) == "triton"
    ((name, ways),) = asked
    assert ways == ["torch", "triton"]  # the first is what a capture takes
    assert "an_op" in name and str(tuple(at.weight.shape)) in name and "float32" in name
    for other in (wide(at.forward()), [at.x[:0], *at.forward()[1:]], [*at.forward()[:-1], 4]):
        assert op(*other) == "torch"
    assert len(asked) == 1
    monkeypatch.setenv("GANFAST_CUDA", "triton")
    assert choice("an_op", lambda *_: "torch", lambda *_: "triton", page._same_groups)(*at.forward()) == "triton"
    assert len(asked) == 1
