"""Gradient penalty's ops against closed forms, and what PyTorch asks of an op: on the reference and on every backend that was
built.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import BATCH_LAYOUTS, DTYPES, Batch
from gradient_penalty_checks import CHARGES, REFUSED, assert_strides, check_refusal
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck

from ganfast.ops.gradient_penalty import interpolate, slope_penalty

DOUBLE = torch.float64
IMAGES = (4, 3, 6, 5)
pytestmark = pytest.mark.usefixtures("backend")


def of_lengths(lengths: list[float], shape: tuple[int, ...], dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    """Samples of these lengths, and the unit vectors that they are multiples of."""
    units = torch.randn(len(lengths), *shape, dtype=DOUBLE)
    units /= units.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    return (units * torch.tensor(lengths, dtype=DOUBLE).view(-1, *[1] * len(shape))).to(dtype), units


# ---- interpolate


def test_a_mixture_is_the_formula_sample_by_sample() -> None:
    real, fake, alpha = torch.randn(5, 7, 3, dtype=DOUBLE), torch.randn(5, 7, 3, dtype=DOUBLE), torch.rand(5, dtype=DOUBLE)
    found = interpolate(real, fake, alpha, False)
    for i in range(5):
        torch.testing.assert_close(found[i], fake[i] + alpha[i] * (real[i] - fake[i]), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ends_are_the_ends(dtype: torch.dtype) -> None:
    """To the bit; fake + 1 (real - fake) would round."""
    real, fake = (torch.randn(2, 1000) * 10).to(dtype), torch.randn(2, 1000).to(dtype)
    found = interpolate(real, fake, torch.tensor([0.0, 1.0]), False)
    assert torch.equal(found[0], fake[0])
    assert torch.equal(found[1], real[1])


@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
def test_stacked_is_real_and_fake_and_what_is_between(layout: str) -> None:
    real, fake, alpha = Batch("images", IMAGES, layout).make(torch.float32, torch.Generator()), torch.randn(IMAGES), torch.rand(4)
    expected = torch.cat([real, fake, interpolate(real, fake, alpha, False)])
    assert torch.equal(interpolate(real, fake, alpha, True), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_types_are_mixed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    real, fake, alpha = torch.randn(64, 50).to(dtype), torch.randn(64, 50).to(dtype), torch.rand(64)
    found = interpolate(real, fake, alpha, False)
    assert found.dtype == dtype
    exact = torch.lerp(fake.double(), real.double(), alpha.double().unsqueeze(1))
    # half a unit in the last place, and float32's own rounding where that decides between two neighbours
    assert ((found.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.501 + 2e-6).all()


def test_alpha_keeps_its_digits_beside_a_low_type() -> None:
    alpha = torch.rand(100)
    found = interpolate(torch.ones(100, 1), torch.zeros(100, 1).bfloat16(), alpha, False)
    assert torch.equal(found.flatten(), alpha)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("real", DTYPES, ids=str)
@pytest.mark.parametrize("fake", DTYPES, ids=str)
def test_the_result_has_the_type_that_both_promote_to(real: torch.dtype, fake: torch.dtype, stacked: bool) -> None:
    found = interpolate(torch.ones(2, 3, dtype=real), torch.ones(2, 3, dtype=fake), torch.rand(2), stacked)
    assert found.dtype == torch.promote_types(real, fake)
    assert (found == 1).all()


@pytest.mark.parametrize("shape", [IMAGES, (1, *IMAGES[1:]), (4, 1, 6, 5), (4, 3, 1, 1), (4, 3, 6), (4, 2, 3, 2, 2)], ids=str)
def test_a_mixture_is_laid_out_as_real_is(shape: tuple[int, ...]) -> None:
    for name, layout in BATCH_LAYOUTS.items():
        if len(shape) < 4 and name == "cropped":
            continue
        real, fake, alpha = layout(torch.randn(shape)), torch.randn(shape), torch.rand(shape[0])
        found = interpolate(real, fake, alpha, False)
        assert_strides(found, torch.empty_like(real))
        stacked = interpolate(real, fake, alpha, True)
        four = real.dim() == 4 and not real.is_contiguous() and real.is_contiguous(memory_format=torch.channels_last)
        assert stacked.is_contiguous(memory_format=torch.channels_last if four else torch.contiguous_format), name


def test_a_mixture_is_a_constant() -> None:
    real, fake, alpha = (torch.rand(size, requires_grad=True) for size in ((3, 4), (3, 4), (3,)))
    for stacked in (False, True):
        assert not interpolate(real, fake, alpha, stacked).requires_grad


# ---- slope_penalty


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 4), (40001,)], ids=str)
def test_known_lengths_cost_what_the_page_says(shape: tuple[int, ...]) -> None:
    g, units = of_lengths([0.5, 1.0, 3.0, 0.0], shape)
    penalty, v = slope_penalty(g, 1.0, 10.0, False)
    assert penalty.item() == pytest.approx(10 / 4 * (0.25 + 0.0 + 4.0 + 1.0), rel=1e-12)
    for i, excess in enumerate([-0.5, 0.0, 2.0]):
        torch.testing.assert_close(v[i], 2 * 10 / 4 * excess * units[i], rtol=0, atol=1e-13)
    assert not v[3].any()


@pytest.mark.parametrize("shape", [(7,), (3, 5, 4), (40001,)], ids=str)
def test_one_sided_charges_what_is_above_the_target_alone(shape: tuple[int, ...]) -> None:
    g, units = of_lengths([0.5, 2.0, 3.0, 0.0], shape)
    penalty, v = slope_penalty(g, 1.0, 8.0, True)
    assert penalty.item() == pytest.approx(8 / 4 * (1.0 + 4.0), rel=1e-12)
    assert not v[[0, 3]].any()
    for i, excess in ((1, 1.0), (2, 2.0)):
        torch.testing.assert_close(v[i], 2 * 8 / 4 * excess * units[i], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_target_zero_it_is_the_mean_square(dtype: torch.dtype) -> None:
    """R1: half the weight."""
    g = torch.randn(6, 3, 8, 8).to(dtype)
    penalty, v = slope_penalty(g, 0.0, 0.5 * 10.0, False)
    wide = torch.promote_types(dtype, torch.float32)
    assert (penalty.dtype, v.dtype, penalty.shape) == (wide, dtype, ())
    # P is rounded once, but where it is float64 itself: there every term of the sum is
    expected, roundings = 5.0 / 6 * g.double().square().sum().item(), g.numel() if dtype == DOUBLE else 1
    assert penalty.item() == pytest.approx(expected, rel=torch.finfo(wide).eps * roundings)
    torch.testing.assert_close(v.double(), 10.0 / 6 * g.double(), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_a_sample_without_elements_has_slope_zero() -> None:
    penalty, v = slope_penalty(torch.empty(3, 0, 2), 2.0, 10.0, False)
    assert penalty.item() == 40.0
    assert v.shape == (3, 0, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("length", [9, 40001])
@pytest.mark.parametrize("charge", CHARGES)
def test_what_is_no_number_stays_in_its_sample(broken: float, length: int, charge: tuple[float, float, bool]) -> None:
    g = torch.randn(5, length)
    sound = slope_penalty(g, *charge)[1]
    g[2, 4] = broken
    penalty, v = slope_penalty(g, *charge)
    assert not penalty.isfinite()
    assert v[2].isnan().any()
    assert torch.equal(v[[0, 1, 3, 4]], sound[[0, 1, 3, 4]])


@pytest.mark.parametrize("size", [1e15, 1e19, 1e25, 1e30])
@pytest.mark.parametrize("length", [30, 40000])
def test_slopes_whose_squares_leave_float32(size: float, length: int) -> None:
    g, units = of_lengths([size, 2 * size, size / 2], (length,), torch.float32)
    penalty, v = slope_penalty(g, 1.0, 10.0, False)
    expected = 10 / 3 * 5.25 * size**2
    assert penalty.item() == (pytest.approx(expected, rel=1e-6) if expected < 3.4e38 else math.inf)
    # float32's own rounding, three times: of g, of the factor and of v
    torch.testing.assert_close(v.double(), 20 / 3 * g.double(), rtol=3e-7, atol=0)
    assert v.flatten(1).double().mul(units).sum(1).tolist() == pytest.approx([20 / 3 * n * size for n in (1, 2, 0.5)], rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-37, 1e-39, 1e-42])
def test_slopes_whose_inverse_leaves_float32(size: float) -> None:
    """A saturated critic: v is as long as ever, and points where g points."""
    g = torch.full((2, 3), size)
    penalty, v = slope_penalty(g, 1.0, 10.0, False)
    assert penalty.item() == pytest.approx(10.0)
    torch.testing.assert_close(v, torch.full((2, 3), -10.0 / math.sqrt(3)))


@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
def test_v_is_laid_out_as_g_is(layout: str) -> None:
    g = Batch("images", IMAGES, layout).make(torch.float32, torch.Generator())
    penalty, v = slope_penalty(g, 1.0, 10.0, False)
    assert_strides(v, torch.empty_like(g))
    plain, plain_v = slope_penalty(g.contiguous(), 1.0, 10.0, False)
    torch.testing.assert_close((penalty, v), (plain, plain_v))


# ---- the gradient


@pytest.mark.parametrize("charge", CHARGES)
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed", "sliced"])
def test_the_gradient_of_p_is_v(charge: tuple[float, float, bool], layout: str) -> None:
    g = BATCH_LAYOUTS[layout](torch.randn(3, 2, 3, 2, dtype=DOUBLE)).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: slope_penalty(g, *charge)[0], g)
    penalty, v = slope_penalty(g, *charge)
    assert penalty.requires_grad and not v.requires_grad
    (grad,) = torch.autograd.grad(penalty, g, torch.tensor(3.0, dtype=DOUBLE))
    assert torch.equal(grad, 3 * v)


def test_a_slope_of_zero_has_gradient_zero() -> None:
    g = torch.zeros(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(slope_penalty(g, 1.0, 10.0, False)[0], g)
    assert torch.equal(grad, torch.zeros(2, 3))


def test_the_gradient_cannot_be_differentiated() -> None:
    g = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice: call backward without create_graph"):
        torch.autograd.grad(slope_penalty(g, 1.0, 10.0, False)[0], g, create_graph=True)


def test_a_loss_scale_that_float16_does_not_have() -> None:
    g = (torch.randn(4, 30) * 1e-3).half().requires_grad_()
    penalty, v = slope_penalty(g, 0.0, 1.0, False)
    (grad,) = torch.autograd.grad(penalty, g, torch.tensor(2.0**16))
    assert torch.equal(grad, (v.float() * 2**16).half())
    assert grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own
@pytest.mark.parametrize("charge", CHARGES)
def test_transforms_and_dual_numbers_go_through_the_plain_form(charge: tuple[float, float, bool]) -> None:
    g, direction = torch.randn(4, 3, 5, dtype=DOUBLE), torch.randn(4, 3, 5, dtype=DOUBLE)
    penalty, v = slope_penalty(g, *charge)
    grad, inner_v = torch.func.grad(lambda g: slope_penalty(g, *charge), has_aux=True)(g)
    torch.testing.assert_close((grad, inner_v), (v, v), rtol=1e-12, atol=1e-12)
    with forward_ad.dual_level():
        value, slope = forward_ad.unpack_dual(slope_penalty(forward_ad.make_dual(g, direction), *charge)[0])
    torch.testing.assert_close((value, slope), (penalty, (v * direction).sum()), rtol=1e-12, atol=1e-12)
    both = torch.stack([g, direction])
    at_once = torch.vmap(lambda g: slope_penalty(g, *charge)[0])(both)
    torch.testing.assert_close(at_once, torch.stack([slope_penalty(x, *charge)[0] for x in both]), rtol=1e-12, atol=1e-12)


# ---- what PyTorch asks of an op


def test_autocast_changes_nothing() -> None:
    real, fake, alpha, g = torch.randn(IMAGES), torch.randn(IMAGES), torch.rand(4), torch.randn(IMAGES, requires_grad=True)

    def everything() -> list[Tensor]:
        mixtures = [interpolate(real, fake, alpha, stacked) for stacked in (False, True)]
        penalty, v = slope_penalty(g, 1.0, 10.0, False)
        return [*mixtures, penalty, v, *torch.autograd.grad(penalty, g)]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = everything()
    assert all(map(torch.equal, under_autocast, expected))


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("layouts", "checks"),
    [(list(BATCH_LAYOUTS), QUICK), (["channels-last"], (*QUICK, "test_aot_dispatch_dynamic"))],
    ids=["every layout", "with compilation"],
)
def test_opcheck(layouts: list[str], checks: tuple[str, ...]) -> None:
    generator = torch.Generator().manual_seed(6)
    for layout in layouts:
        for dtype in (torch.float32, torch.bfloat16):
            real, fake = (Batch("images", IMAGES, layout).make(dtype, generator) for _ in range(2))
            for stacked in (False, True):
                opcheck(interpolate.overload, (real, fake.float(), torch.rand(4), stacked), test_utils=checks)
            opcheck(slope_penalty.overload, (real, 1.0, 10.0, True), test_utils=checks)
            opcheck(slope_penalty.overload, (real.detach().requires_grad_(), 1.0, 10.0, False), test_utils=checks)


def test_arguments_are_left_alone_and_never_returned() -> None:
    given = [torch.randn(IMAGES), torch.randn(IMAGES), torch.ones(4)]
    before = [tensor.clone() for tensor in given]
    results = [interpolate(*given, stacked) for stacked in (False, True)]
    results += [*slope_penalty(given[0], 0.0, 2.0, False)]  # v = g, and still a copy
    torch.testing.assert_close(results[-1], given[0])
    assert all(map(torch.equal, given, before))
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*given, *results)]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(compiler: str, layout: str) -> None:
    real, fake = BATCH_LAYOUTS[layout](torch.randn(IMAGES)), torch.randn(IMAGES)
    alpha, weight = torch.rand(4), torch.randn(IMAGES, requires_grad=True)

    def step(real: Tensor, fake: Tensor, alpha: Tensor, weight: Tensor) -> list[Tensor]:
        batch, point = interpolate(real, fake, alpha, True), interpolate(real, fake, alpha, False)
        return [batch, point, *slope_penalty(point * weight, 1.0, 10.0, False)]

    def run(f: Callable[..., list[Tensor]]) -> list[Tensor]:
        results = f(real, fake, alpha, weight)
        return [*results, *torch.autograd.grad(results[2], weight)]

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
