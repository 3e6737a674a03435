"""Batch norm's ops against PyTorch's batch norm in float64, and what PyTorch asks of an op: on the reference and on every backend
that was built.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from batch_norm_checks import EPS, FORMS, REFUSED, Form, assert_strides, check_refusal
from cases import BATCH_LAYOUTS, DTYPES
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck

from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_backward, batch_norm_act_tracked

DOUBLE = torch.float64
SHAPES = [(6, 4), (6, 4, 7), (6, 4, 3, 5), (4, 3, 13, 11), (2, 3, 2, 3, 4)]
IMAGES = (4, 3, 6, 5)
BOTH = ["contiguous", "channels-last"]
pytestmark = pytest.mark.usefixtures("backend")


def parameters(channels: int) -> tuple[Tensor, Tensor]:
    return torch.randn(channels, dtype=DOUBLE), torch.randn(channels, dtype=DOUBLE)


def torchs(x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, eps: float = EPS) -> Tensor:
    """PyTorch's own, half by half."""
    halves = [F.batch_norm(half, None, None, weight, bias, True, 0.1, eps) for half in x.chunk(form.groups)]
    z = torch.cat(halves)
    return z.tanh() if form.tanh else F.leaky_relu(z, form.slope)


def ours(x: Tensor, weight: Tensor | None, bias: Tensor | None, form: Form, eps: float = EPS) -> Tensor:
    y: Tensor = batch_norm_act(x, weight, bias, form.groups, eps, form.slope, form.tanh)[0]
    return y


# ---- values


@pytest.mark.parametrize("form", [form for form in FORMS if form.groups < 4], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [EPS, 0.3])
def test_it_is_batch_norm_and_then_the_activation(form: Form, shape: tuple[int, ...], eps: float) -> None:
    for layout in BATCH_LAYOUTS.values():
        if len(shape) == 2 and layout in (BATCH_LAYOUTS["channels-last"], BATCH_LAYOUTS["cropped"]):
            continue
        x = layout(torch.randn(shape, dtype=DOUBLE) * 3 + 1).requires_grad_()
        affine = [p.requires_grad_() for p in parameters(shape[1])] if form.affine else [None, None]
        y, expected = ours(x, *affine, form, eps), torchs(x, *affine, form, eps)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        inputs = [t for t in (x, *affine) if t is not None]
        upstream = torch.randn(shape, dtype=DOUBLE)
        grads, wanted = (torch.autograd.grad(out, inputs, upstream) for out in (y, expected))
        torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 70, 4, 4), (6, 3, 13, 13), (1, 2, 4, 4)], ids=str)
def test_the_statistics_are_the_mean_and_the_biased_variance(shape: tuple[int, ...], layout: str) -> None:
    x = BATCH_LAYOUTS[layout](torch.randn(shape, dtype=DOUBLE) + 2)
    y, mean, var = batch_norm_act(x, None, None, 1, EPS, 1.0, False)
    assert (y.shape, mean.shape, var.shape) == (shape, (1, shape[1]), (1, shape[1]))
    values = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean[0], values.mean(1))
    torch.testing.assert_close(var[0], values.var(1, unbiased=False))


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(8, 5, 4, 3), (4, 5, 13, 13), (8, 600, 2, 2), (8, 5, 1, 1)], ids=str)
def test_every_group_is_as_if_it_were_alone(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """To the bit."""
    x, grad = (BATCH_LAYOUTS[layout](torch.randn(shape).to(dtype)) for _ in range(2))
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    y, mean, var = batch_norm_act(x, weight, bias, 4, EPS, 0.2, False)
    dx, dweight, _ = batch_norm_act_backward(grad, x, weight, bias, mean, var, EPS, 0.2, False)
    sums = torch.zeros_like(dweight)
    for i, (part, part_grad) in enumerate(zip(x.chunk(4), grad.chunk(4), strict=True)):
        part, part_grad = BATCH_LAYOUTS[layout](part), BATCH_LAYOUTS[layout](part_grad)
        alone, alone_mean, alone_var = batch_norm_act(part, weight, bias, 1, EPS, 0.2, False)
        assert torch.equal(y.chunk(4)[i], alone)
        assert torch.equal(mean[i], alone_mean[0]) and torch.equal(var[i], alone_var[0])
        alone_dx, alone_dweight, _ = batch_norm_act_backward(
            part_grad, part, weight, bias, alone_mean, alone_var, EPS, 0.2, False
        )
        assert torch.equal(dx.chunk(4)[i], alone_dx)
        sums += alone_dweight
    torch.testing.assert_close(dweight, sums, rtol=1e-5, atol=1e-4)  # float32's sums of the order of ten


def test_channels_of_one_value_become_their_bias() -> None:
    bias = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    for x in (
        torch.randn(1, 3, dtype=DOUBLE),
        torch.full((4, 3, 5), 7.3, dtype=DOUBLE),
        torch.full((4, 3, 15, 15), 0.1).double(),
    ):
        y, mean, var = batch_norm_act(x, torch.ones(3, dtype=DOUBLE), bias, 1, EPS, 1.0, False)
        expected = bias.view(1, 3, *[1] * (x.dim() - 2)).expand(x.shape)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)
        assert var.max() <= 1e-28
        dx, dweight, _ = batch_norm_act_backward(torch.randn_like(x), x, None, None, mean, var, EPS, 1.0, False)
        assert dx.isfinite().all()
        assert dweight.abs().max() <= 1e-8


@pytest.mark.parametrize("layout", BOTH)
def test_a_mean_far_from_zero(layout: str) -> None:
    """10^4 and standard deviation 1 in float32, whose squares differ in their eighth digit."""
    x = BATCH_LAYOUTS[layout](torch.randn(32, 3, 16, 16) + 1e4)
    y, mean, var = batch_norm_act(x, None, None, 1, EPS, 1.0, False)
    exact = torchs(x.double(), None, None, Form())
    # float32 has the mean to 5e-4, and nothing else is lost
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(var[0].double(), x.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean[0].double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layout", BOTH)
def test_what_is_no_number_stays_in_its_group_and_channel(broken: float, layout: str) -> None:
    x = torch.randn(4, 3, 5, 5)
    sound = batch_norm_act(BATCH_LAYOUTS[layout](x), None, None, 2, EPS, 0.0, False)[0]
    x[3, 1, 2, 2] = broken
    y, mean, _ = batch_norm_act(BATCH_LAYOUTS[layout](x), None, None, 2, EPS, 0.0, False)
    assert y[2:, 1].isnan().all()
    assert torch.equal(y[:2], sound[:2])
    assert torch.equal(y[2:, [0, 2]], sound[2:, [0, 2]])
    assert (~mean.isfinite()).nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
def test_types_and_layouts_are_those_of_x(dtype: torch.dtype, layout: str) -> None:
    x = BATCH_LAYOUTS[layout](torch.randn(IMAGES).to(dtype))
    wide = torch.promote_types(dtype, torch.float32)
    y, mean, var = batch_norm_act(x, torch.ones(3), torch.zeros(3), 2, EPS, 0.2, False)
    found = batch_norm_act_backward(torch.randn(IMAGES), x, torch.ones(3), torch.zeros(3), mean, var, EPS, 0.2, False)
    assert_strides(y, torch.empty_like(x))
    assert_strides(found[0], torch.empty_like(x))
    assert [t.dtype for t in (y, mean, var, *found)] == [dtype, wide, wide, dtype, wide, wide]


def test_the_slope_at_zero_is_slope() -> None:
    """x^ is zero where x is the mean."""
    x, grad = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[0.0], [1.0], [0.0]])
    _, mean, var = batch_norm_act(x, None, None, 1, EPS, 0.25, False)
    assert batch_norm_act_backward(grad, x, None, None, mean, var, EPS, 0.25, False)[2].item() == 0.25


# ---- gradients


@pytest.mark.filterwarnings("ignore:Input #1 requires gradient")
@pytest.mark.parametrize("form", [form for form in FORMS if form.groups < 4], ids=str)
@pytest.mark.parametrize("layout", BOTH)
def test_gradients_of_any_order(form: Form, layout: str) -> None:
    x = BATCH_LAYOUTS[layout](torch.randn(4, 2, 3, 2, dtype=DOUBLE)).requires_grad_()
    inputs = [x, *(p.requires_grad_() for p in parameters(2))] if form.affine else [x]

    def call(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return ours(x, weight, bias, form)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_statistics_are_constants() -> None:
    x = torch.randn(IMAGES, requires_grad=True)
    y, mean, var = batch_norm_act(x, None, None, 1, EPS, 0.0, False)
    assert (y.requires_grad, mean.requires_grad, var.requires_grad) == (True, False, False)


@pytest.mark.parametrize("parameter", DTYPES, ids=str)
def test_parameters_get_gradients_of_their_type(parameter: torch.dtype) -> None:
    weight, bias = (torch.randn(3).to(parameter).requires_grad_() for _ in range(2))
    batch_norm_act(torch.randn(IMAGES).bfloat16(), weight, bias, 1, EPS, 0.0, False)[0].sum().backward()
    assert (weight.grad.dtype, bias.grad.dtype) == (parameter, parameter)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
@pytest.mark.parametrize("form", [form for form in FORMS if form.affine], ids=str)
def test_transforms_and_dual_numbers_go_through_the_plain_form(form: Form) -> None:
    x, direction = torch.randn(4, 3, 5, dtype=DOUBLE), torch.randn(4, 3, 5, dtype=DOUBLE)
    weight, bias = parameters(3)

    def loss(x: Tensor) -> Tensor:
        return ours(x, weight, bias, form).square().sum()

    variable = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(variable), variable)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-10, atol=1e-10)
    with forward_ad.dual_level():
        _, slope = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, direction)))
    torch.testing.assert_close(slope, (expected * direction).sum(), rtol=1e-10, atol=1e-10)
    both = torch.vmap(loss)(torch.stack([x, direction]))
    torch.testing.assert_close(both, torch.stack([loss(x), loss(direction)]), rtol=1e-10, atol=1e-10)


# ---- what PyTorch asks of an op


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("layouts", "checks"),
    [(list(BATCH_LAYOUTS), QUICK), (["channels-last"], (*QUICK, "test_aot_dispatch_dynamic"))],
    ids=["every layout", "with compilation"],
)
def test_opcheck(layouts: list[str], checks: tuple[str, ...]) -> None:
    for layout in layouts:
        for dtype in (torch.float32, torch.bfloat16):
            x, grad = (BATCH_LAYOUTS[layout](torch.randn(IMAGES).to(dtype)) for _ in range(2))
            weight, bias = torch.rand(3), torch.rand(3)
            mean, var = torch.zeros(2, 3), torch.ones(2, 3)
            backward = batch_norm_act_backward.overload
            opcheck(batch_norm_act.overload, (x, None, None, 2, EPS, 0.2, False), test_utils=checks)
            opcheck(backward, (grad, x, weight, bias, mean, var, EPS, 0.0, True), test_utils=checks)
            variables = [t.detach().requires_grad_() for t in (x, weight, bias)]
            opcheck(batch_norm_act.overload, (*variables, 2, EPS, 0.2, False), test_utils=checks)
            running = torch.zeros(3), torch.ones(3), torch.tensor(0), 0.1
            opcheck(batch_norm_act_tracked.overload, (*variables, 2, EPS, 0.2, False, *running), test_utils=checks)


def test_running_statistics_are_moved_out_of_autograds_sight() -> None:
    """As PyTorch's batch norm moves them: what another backward pass holds of them is none that was changed."""
    running = torch.ones(3), torch.ones(3), torch.tensor(0)
    variables = [torch.randn(IMAGES, requires_grad=True), *(torch.rand(3, requires_grad=True) for _ in range(2))]
    held = (variables[1] * running[0]).sum()
    y, *_ = batch_norm_act_tracked(*variables, 2, EPS, 0.2, False, *running, 0.1)
    expected, *_ = batch_norm_act(*variables, 2, EPS, 0.2, False)
    upstream = torch.randn_like(y)
    found, plain = (torch.autograd.grad(each, variables, upstream) for each in (y, expected))
    assert all(map(torch.equal, found, plain))
    assert [t._version for t in running[:2]] == [0, 0] and int(running[2]) == 2
    assert not torch.equal(running[0], torch.ones(3))
    held.backward()


def test_arguments_are_left_alone_and_never_returned() -> None:
    x, grad, weight, bias = torch.randn(IMAGES), torch.randn(IMAGES), torch.ones(3), torch.zeros(3)
    before = [t.clone() for t in (x, grad, weight, bias)]
    y, mean, var = batch_norm_act(x, weight, bias, 1, EPS, 1.0, False)
    found = batch_norm_act_backward(grad, x, weight, bias, mean, var, EPS, 1.0, False)
    assert all(map(torch.equal, (x, grad, weight, bias), before))
    memory = [t.untyped_storage().data_ptr() for t in (x, grad, weight, bias, y, mean, var, *found)]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(compiler: str, layout: str) -> None:
    x = BATCH_LAYOUTS[layout](torch.randn(IMAGES)).requires_grad_()
    weight, bias = (torch.randn(3, requires_grad=True) for _ in range(2))

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return batch_norm_act(x * 2, weight, bias, 2, EPS, 0.2, False)

    def run(f: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        results = f(x, weight, bias)
        return [*results, *torch.autograd.grad(results[0].square().sum(), (x, weight, bias))]

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = run(torch.compile(step, fullgraph=True, dynamic=False, backend=compiler))
    for found, expected in zip(compiled, run(step), strict=True):
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    check_refusal(name)
