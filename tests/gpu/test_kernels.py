"""The kernels on a GPU, whichever GANFAST_CUDA chose, by the checks of every other backend."""

from __future__ import annotations

import math

import adam_checks
import batch_norm_checks
import gradient_penalty_checks
import pytest
import torch
from batch_norm_checks import FORMS, Form
from cases import (
    BATCH_LAYOUTS,
    BATCHES,
    DCGAN64,
    DTYPES,
    EMPTY,
    EMPTY_BATCHES,
    LAID_OUT,
    LAID_OUT_BATCHES,
    LAID_OUT_VOLUMES,
    RESNET32_CRITIC,
    SHAPES,
    SIZED,
    SIZED_BATCHES,
    VOLUMES,
    Batch,
    Weight,
)
from spectral_norm_checks import (
    EPS,
    REFUSED,
    check,
    check_any_mix_of_types,
    check_nan_and_inf,
    check_refusal,
    check_sized,
    make,
)

from ganfast import optim
from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_backward
from ganfast.ops.gradient_penalty import interpolate, slope_penalty
from ganfast.ops.spectral_norm import spectral_norm, spectral_norm_backward

pytestmark = pytest.mark.tier(5)

CASES = [*SHAPES, *LAID_OUT, *EMPTY]
SMALL = [case for case in CASES if math.prod(case.shape) < 2**12]  # what compute-sanitizer gets through
LARGE = [case for case in CASES if case not in SMALL]


# ---- spectral norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_spectral_norm_of_small_weights(case: Weight, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make([case], dtype, generator), [case.layout], generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_spectral_norm_of_large_weights(case: Weight, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make([case], dtype, generator), [case.layout], generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", [RESNET32_CRITIC, DCGAN64], ids=["resnet32", "dcgan64"])
def test_spectral_norm_of_whole_networks(network: list[Weight], dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make(network, dtype, generator), ["contiguous"] * len(network), generator, "cuda")


@pytest.mark.parametrize("case", SIZED, ids=str)
def test_weights_of_any_size(case: Weight, generator: torch.Generator) -> None:
    check_sized(case, generator, "cuda")


def test_any_mix_of_types(generator: torch.Generator) -> None:
    check_any_mix_of_types(generator, "cuda")


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    check_refusal(name, "cuda")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_flow_as_in_pytorch(value: float, generator: torch.Generator) -> None:
    check_nan_and_inf(Weight("conv2d", (4, 6, 3, 3), 1, "channels-last"), value, torch.float32, generator, "cuda")


def test_a_captured_iteration_follows_the_weights(generator: torch.Generator) -> None:
    """Captured once and replayed after the weights have changed: addresses are kept, and nothing waits for the host."""
    weights, u, v, dims = make(RESNET32_CRITIC, torch.float32, generator)
    weights, u, v = [weight.cuda() for weight in weights], u.cuda(), v.cuda()
    grads = [torch.randn_like(weight) for weight in weights]

    def step() -> list[torch.Tensor]:
        normalised, *found = spectral_norm(weights, u, v, dims, 1, EPS, None)
        return [*normalised, *found, *spectral_norm_backward(grads, weights, *found, dims, EPS)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for weight in weights:
        weight.mul_(3).add_(0.1)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)  # one order of sums, whatever launches it


# ---- Adam


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", adam_checks.CHECKS)
def test_adam(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    adam_checks.CHECKS[name](dtype, generator, "cuda")


def test_a_captured_step_of_adam_follows_the_step_size(generator: torch.Generator) -> None:
    """Captured once and replayed with another lr, and with steps that go on."""
    parameter = torch.nn.Parameter(torch.randn(50, generator=generator).cuda())
    twin = torch.nn.Parameter(parameter.detach().clone())
    parameter.grad, twin.grad = torch.ones_like(parameter), torch.ones_like(parameter)
    lr = torch.full((), 0.01, dtype=torch.float64, device="cuda")
    ours, theirs = optim.Adam([parameter], lr=lr), torch.optim.Adam([twin], lr=0.01, fused=True)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        ours.step()
    torch.cuda.current_stream().wait_stream(side)
    theirs.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for new in (0.1, 0.02):
        lr.fill_(new)
        theirs.param_groups[0]["lr"] = new
        graph.replay()
        theirs.step()
        torch.testing.assert_close(parameter, twin)


# ---- gradient penalty


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*BATCHES, *LAID_OUT_BATCHES, *EMPTY_BATCHES], ids=str)
def test_gradient_penalty(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    gradient_penalty_checks.check(case, dtype, generator, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SIZED_BATCHES, ids=str)
def test_slopes_of_any_size(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    gradient_penalty_checks.check(case, dtype, generator, "cuda")


def test_real_and_fake_in_any_layouts_and_types(generator: torch.Generator) -> None:
    gradient_penalty_checks.check_any_pair_of_layouts(generator, "cuda")
    gradient_penalty_checks.check_any_mix_of_types(generator, "cuda")
    gradient_penalty_checks.check_strided_alpha(generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slopes_of_zero(dtype: torch.dtype, generator: torch.Generator) -> None:
    gradient_penalty_checks.check_zero_slopes(dtype, generator, "cuda")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", [Batch("odd", (6, 9)), Batch("images", (3, 3, 32, 32))], ids=str)
def test_slopes_that_are_no_numbers(case: Batch, value: float, generator: torch.Generator) -> None:
    gradient_penalty_checks.check_nan_and_inf(case, value, torch.float32, generator, "cuda")


@pytest.mark.parametrize("name", gradient_penalty_checks.REFUSED)
def test_batches_that_do_not_fit_are_refused(name: str) -> None:
    gradient_penalty_checks.check_refusal(name, "cuda")


def test_real_fake_and_alpha_are_on_one_device() -> None:
    here, there = torch.ones(3, 2), torch.ones(3, 2, device="cuda")
    for arguments in ((there, here, there[:, 0]), (there, there, here[:, 0])):
        with pytest.raises((RuntimeError, ValueError), match="one device"):
            interpolate(*arguments, False)


def test_a_captured_penalty_follows_its_data(generator: torch.Generator) -> None:
    """Captured once and replayed after the data have changed: nothing waits for the host."""
    case = Batch("images", (16, 3, 32, 32))
    real, fake = (case.make(torch.float32, generator).cuda() for _ in range(2))
    alpha = gradient_penalty_checks.alphas(16, generator).cuda()

    def step() -> list[torch.Tensor]:
        mixtures = [interpolate(real, fake, alpha, stacked) for stacked in (False, True)]
        return [*mixtures, *slope_penalty(mixtures[0], 1.0, 10.0, False)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for batch in (real, fake):
        batch.mul_(3).add_(0.1)
    alpha.copy_(1 - alpha)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)  # one order of sums, whatever launches it


# ---- batch norm


BOTH = ["contiguous", "channels-last"]
# as models have them, and so large that a thread gets all its packs
LARGE_VOLUMES = [
    Batch("images", shape, layout) for shape in ((64, 64, 32, 32), (64, 512, 4, 4), (2, 8, 500, 500)) for layout in BOTH
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*VOLUMES, *LAID_OUT_VOLUMES], ids=str)
def test_batch_norm(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    batch_norm_checks.check(case, dtype, generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE_VOLUMES, ids=str)
def test_batch_norm_of_large_volumes(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    for form in (Form(groups=2, slope=0.2), Form(tanh=True)):
        batch_norm_checks.check_form(case, form, dtype, generator, "cuda")


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batch_norm_of_numbers_out_of_the_ordinary(layout: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    batch_norm_checks.check_far_from_zero(layout, generator, "cuda")
    batch_norm_checks.check_constant(dtype, layout, generator, "cuda")
    for value in (math.nan, math.inf, -math.inf):
        batch_norm_checks.check_nan_and_inf(value, dtype, layout, generator, "cuda")


def test_batch_norm_of_any_layouts_and_types(generator: torch.Generator) -> None:
    batch_norm_checks.check_any_pair_of_layouts(generator, "cuda")
    batch_norm_checks.check_any_mix_of_types(generator, "cuda")


def test_batch_norm_moves_running_statistics(generator: torch.Generator) -> None:
    batch_norm_checks.check_tracked(generator, "cuda")


@pytest.mark.parametrize("name", batch_norm_checks.REFUSED)
def test_volumes_that_do_not_fit_are_refused(name: str) -> None:
    batch_norm_checks.check_refusal(name, "cuda")


def both_ways(x: torch.Tensor, grad: torch.Tensor, form: Form) -> list[torch.Tensor]:
    weight, bias = (torch.linspace(*ends, x.shape[1], device="cuda") for ends in ((-1, 2), (1, -1)))
    y, mean, var = batch_norm_act(x, weight, bias, form.groups, 1e-5, form.slope, form.tanh)
    return [y, mean, var, *batch_norm_act_backward(grad, x, weight, bias, mean, var, 1e-5, form.slope, form.tanh)]


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("form", FORMS[:4], ids=str)
def test_a_captured_batch_norm_follows_its_data(form: Form, layout: str) -> None:
    """Captured once and replayed after the data have changed: nothing waits for the host, and a run gives the same bits again."""
    x, grad = (BATCH_LAYOUTS[layout](torch.randn(64, 64, 16, 16, device="cuda")) for _ in range(2))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        both_ways(x, grad, form)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_ways(x, grad, form)
    x.mul_(3).add_(0.1)
    graph.replay()
    for found, expected in zip(captured, both_ways(x, grad, form), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("layout", BOTH)
def test_more_than_2_to_the_31_values(layout: str) -> None:
    """The second group, whose offsets begin past 2^31, is to the bit as if it were alone."""
    shape = (2, 8, 2**14, 2**13 + 1)
    if torch.cuda.mem_get_info()[0] < 10 * 2 * math.prod(shape):  # x, grad, y and dx, copies of a group of each
        pytest.skip("a GPU with 43 GB free is needed")
    x, grad = (BATCH_LAYOUTS[layout](torch.randn(shape, device="cuda", dtype=torch.bfloat16)) for _ in range(2))
    y, mean, var, dx, *_ = both_ways(x, grad, Form(groups=2, slope=0.2))
    alone = both_ways(BATCH_LAYOUTS[layout](x[1:]), BATCH_LAYOUTS[layout](grad[1:]), Form(slope=0.2))[:4]
    assert all(map(torch.equal, alone, (y[1:], mean[1:], var[1:], dx[1:])))
    assert (
        mean.abs().max() < 1e-3 and (var - 1).abs().max() < 1e-3
    )  # of 2^27 normal numbers: a thousandth is ten deviations and more
