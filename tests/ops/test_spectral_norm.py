"""Spectral norm against the truth, and what PyTorch asks of an op: on the reference and on every backend that was built."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import EMPTY, LAYOUTS, Weight
from spectral_norm_checks import EPS, REFUSED, by_weight, check_refusal
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.spectral_norm import matrix, power_iteration, spectral_norm, spectral_norm_backward, vectors

DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("backend")


def with_spectrum(rows: int, columns: int, spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with these singular values, and its left and right singular vectors as columns."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(spectrum), dtype=DOUBLE, generator=generator)).Q for size in (rows, columns)
    )
    return left * torch.tensor(spectrum, dtype=DOUBLE) @ right.T, left, right


def start(*matrices: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(matrices[0].dtype, torch.float32)
    u, v = ([torch.randn(w.shape[axis], dtype=wide, generator=generator) for w in matrices] for axis in (0, 1))
    return torch.cat([x / x.norm() for x in u]), torch.cat([x / x.norm() for x in v])


def iterate(weights: list[Tensor], pair: tuple[Tensor, Tensor], n_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """For matrices whose rows run along dim 0."""
    return power_iteration(weights, *pair, [0] * len(weights), n_iterations, EPS)


def normalise(weight: Tensor, u: Tensor, v: Tensor, dim: int = 0) -> Tensor:
    """W / sigma for these vectors."""
    return spectral_norm([weight], u, v, [dim], 0, EPS, None)[0][0]


# ---- sigma


@pytest.mark.parametrize(
    ("shape", "spectrum", "iterations"),
    [
        ((7, 5), [3.0, 2.0, 1.0, 0.5, 0.1], 60),
        ((5, 33), [3.0, 2.9, 1.0, 1.0, 1.0], 800),
        ((16, 16), [10.0, 1e-3], 10),
        ((12, 9), [2.5], 1),  # rank one: a single iteration is exact
        ((1, 40), [4.0], 1),
        ((40, 1), [4.0], 1),
        ((6, 6), [1e-6, 1e-7], 30),
        ((6, 6), [1e6, 9e5], 300),
    ],
)
def test_sigma_is_the_largest_singular_value(shape: tuple[int, int], spectrum: list[float], iterations: int) -> None:
    weight, left, right = with_spectrum(*shape, spectrum)
    u, v, (sigma,) = iterate([weight], start(weight), iterations)
    assert sigma.item() == pytest.approx(spectrum[0], rel=1e-12)
    assert abs(u.dot(left[:, 0]).item()) == pytest.approx(1.0, abs=1e-10)
    assert abs(v.dot(right[:, 0]).item()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("iterations", [1, 2, 7, 40])
def test_every_iteration_is_the_closed_form(gap: float, iterations: int) -> None:
    """From v = sum of c_i r_i, k iterations make u of c_i s_i^(2k-1) l_i, and v of c_i s_i^(2k) r_i."""
    spectrum = [1.0 + gap, 1.0, 0.9, 0.5, 0.1]
    weight, left, right = with_spectrum(23, 14, spectrum)
    u, v = start(weight)
    powers = torch.tensor(spectrum, dtype=DOUBLE) / spectrum[0]
    by_u, by_v = (right.T @ v * powers ** (2 * iterations - less) for less in (1, 0))
    u, v, (sigma,) = iterate([weight], (u, v), iterations)
    assert sigma.item() == pytest.approx((by_v.norm() / by_u.norm()).item() * spectrum[0], rel=1e-12)
    torch.testing.assert_close(u, left @ by_u / by_u.norm(), rtol=0, atol=1e-12)
    torch.testing.assert_close(v, right @ by_v / by_v.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.1, 1.0, 10.0])
def test_sigma_is_right_at_every_gap(gap: float) -> None:
    weight, *_ = with_spectrum(20, 30, [1.0 + gap, 1.0, 0.5, 0.1])
    *_, (sigma,) = iterate([weight], start(weight), 60)
    # what is left of the second direction after k iterations weighs (1 + gap)^-4k, and lowers sigma by that part of the gap
    missing = gap * min(1.0, 100 * (1 + gap) ** -240)
    assert 1.0 + gap - missing - 1e-13 <= sigma.item() <= (1.0 + gap) * (1 + 1e-14)


@pytest.mark.parametrize(
    ("shape", "dim"), [((1, 2**20), 0), ((2**20, 1), 0), ((2**20, 1), 1), ((3, 2**20), 0), ((2**18, 3, 2, 2), 1)]
)
def test_sigma_of_the_very_wide(shape: tuple[int, ...], dim: int, backend: str) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    weight.select(dim, 0).mul_(1.5)  # a gap
    w = matrix(weight, dim).double()
    u, v, (sigma,) = power_iteration([weight], *start(w.float()), [dim], 40, EPS)
    *_, (at_rest,) = power_iteration([weight], u, v, [dim], 0, EPS)
    truth = torch.linalg.eigvalsh(w @ w.T if w.shape[0] < w.shape[1] else w.T @ w)[-1].sqrt().item()
    # float32's eps is 1.2e-7, and the sums have a few roundings more; PyTorch's own products and norms add the 2^20 numbers up
    # in a few lanes, and are 6e-4 off
    assert [sigma.item(), at_rest.item()] == pytest.approx([truth] * 2, rel=2e-3 if backend == "reference" else 1e-6)


def test_sigma_never_overshoots_and_never_falls() -> None:
    weight = torch.randn(30, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    largest = torch.linalg.svdvals(weight)[0].item()
    u, v = start(weight)
    sigmas = []
    for _ in range(40):
        u, v, (sigma,) = iterate([weight], (u, v), 1)
        sigmas.append(sigma.item())
    assert all(before <= after * (1 + 1e-14) for before, after in itertools.pairwise(sigmas))
    assert 0.97 * largest < sigmas[-1] <= largest * (1 + 1e-14)


def test_the_third_product_is_indeed_redundant() -> None:
    weight = torch.randn(9, 14, dtype=DOUBLE)
    u, v, (sigma,) = iterate([weight], start(weight), 2)
    assert sigma.item() == pytest.approx((u @ weight @ v).item(), rel=1e-14)


def test_without_iterations_sigma_comes_from_the_given_vectors() -> None:
    weight = torch.randn(9, 14, dtype=DOUBLE)
    u, v = start(weight)
    new_u, new_v, (sigma,) = iterate([weight], (u, v), 0)
    assert torch.equal(new_u, u)
    assert torch.equal(new_v, v)
    # the terms of u^T W v may cancel, so the error is absolute: 126 of them of size 0.1
    assert sigma.item() == pytest.approx((u @ weight @ v).item(), abs=1e-14)


def test_many_iterations_are_single_ones_in_turn() -> None:
    weight = torch.randn(11, 40)
    u, v = start(weight)
    at_once = iterate([weight], (u, v), 3)
    for _ in range(3):
        u, v, sigmas = iterate([weight], (u, v), 1)
    assert all(map(torch.equal, at_once, (u, v, sigmas)))


def test_a_group_is_its_members_one_by_one() -> None:
    weights = [torch.randn(shape) for shape in [(3, 8), (5, 5), (1, 7), (64, 9), (300, 700)]]
    dims = [0] * len(weights)
    u, v = start(*weights)
    together = by_weight(weights, dims, *iterate(weights, (u, v), 3))
    for weight, pair, found in zip(weights, vectors(weights, u, v, dims), together, strict=True):
        alone = iterate([weight], pair, 3)
        assert all(map(torch.equal, found, (*alone[:2], alone[2][0])))


def test_no_weights_at_all() -> None:
    none = torch.empty(0)
    normalised, *found = spectral_norm([], none, none, [], 1, EPS, None)
    assert normalised == []
    assert [x.shape for x in (*found, *power_iteration([], none, none, [], 1, EPS))] == [(0,)] * 6
    assert spectral_norm_backward([], [], none, none, none, [], EPS) == []


# ---- what has no direction, and what is no number


@pytest.mark.parametrize(("size", "n_iterations"), [(0.0, 5), (0.0, 0), (1e-14, 5)])
def test_what_is_shorter_than_eps_keeps_its_vectors_and_is_not_scaled(size: float, n_iterations: int) -> None:
    weight = torch.full((4, 6), size, requires_grad=True)
    u, v = start(weight)
    (output,), new_u, new_v, sigmas = spectral_norm([weight], u, v, [0], n_iterations, EPS, None)
    assert torch.equal(new_u, u)
    assert torch.equal(new_v, v)
    assert abs(sigmas.item()) <= (EPS if size else 0.0)
    assert torch.equal(output, weight)
    upstream = torch.randn(4, 6)
    (grad,) = torch.autograd.grad(output, weight, upstream)
    assert torch.equal(grad, upstream)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_a_weight_without_elements_is_a_zero_matrix(case: Weight) -> None:
    weight = torch.empty(case.shape)
    u, v = start(matrix(weight, case.dim))
    for n_iterations in (0, 2):
        (output,), *found = spectral_norm([weight], u, v, [case.dim], n_iterations, EPS, torch.bfloat16)
        for new_u, new_v, sigmas in (found, power_iteration([weight], u, v, [case.dim], n_iterations, EPS)):
            assert torch.equal(new_u, u)
            assert torch.equal(new_v, v)
            assert sigmas.tolist() == [0.0]
        (grad,) = spectral_norm_backward([output], [weight], *found, [case.dim], EPS)
        assert (output.shape, output.dtype) == (case.shape, torch.bfloat16)
        assert (grad.shape, grad.dtype) == (case.shape, torch.float32)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_and_inf_show(broken: float) -> None:
    weights = [torch.randn(4, 6), torch.randn(4, 6)]
    weights[0][2, 3] = broken
    normalised, *found = spectral_norm(weights, *start(*weights), [0, 0], 1, EPS, None)
    shown, sound = by_weight(weights, [0, 0], *found)
    assert not any(tensor.isfinite().all() for tensor in (*shown, normalised[0]))
    assert all(tensor.isfinite().all() for tensor in (*sound, normalised[1]))


# ---- low types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    weight = with_spectrum(8, 4096, [60.0, 30.0, 20.0, 10.0])[0].to(dtype)
    u, v, (sigma,) = iterate([weight], start(weight), 40)
    assert {u.dtype, v.dtype, sigma.dtype} == {torch.float32}
    # a sum in bfloat16 would be 1e-3 off
    assert sigma.item() == pytest.approx(torch.linalg.svdvals(weight.double())[0].item(), rel=1e-5)


def test_autocast_changes_nothing() -> None:
    weight = torch.randn(8, 300, requires_grad=True)
    pair = start(weight)

    def everything() -> list[Tensor]:
        u, v, sigmas = iterate([weight.detach()], pair, 2)
        (output,), *found = spectral_norm([weight], *pair, [0], 2, EPS, None)
        (grad,) = torch.autograd.grad(output.square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), weight)
        return [u, v, sigmas, output, *found, grad, second]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = everything()
    assert all(map(torch.equal, under_autocast, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_normalised_weight_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(30, 50, requires_grad=True)
    (output,), _, _, sigmas = spectral_norm([weight], *start(weight), [0], 3, EPS, dtype)
    assert output.dtype == dtype
    exact = weight.detach().double() / sigmas.double()
    # half a unit in the last place, and float32's own rounding where that decides between two neighbours
    assert ((output.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.501 + 1e-7).all()
    (grad,) = torch.autograd.grad(output, weight, torch.ones_like(output))
    assert grad.dtype == torch.float32


# ---- gradients


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((4, 3, 2, 2), 0), ((4, 3, 2, 2), 1), ((3, 5, 3), 1), ((2, 3, 4), 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
def test_the_gradient_is_exact_to_second_order(shape: tuple[int, ...], dim: int, layout: str) -> None:
    if layout == "channels-last" and len(shape) < 3:
        layout = "reversed"
    generator = torch.Generator().manual_seed(2)
    weight = LAYOUTS[layout](torch.randn(shape, dtype=DOUBLE, generator=generator)).requires_grad_()
    u, v = start(matrix(weight.detach(), dim))
    assert torch.autograd.gradcheck(lambda w: normalise(w, u, v, dim), weight)
    assert torch.autograd.gradgradcheck(lambda w: normalise(w, u, v, dim), weight)


def test_the_third_derivative_through_a_gradient_that_depends_on_w_is_that_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, first, second, third = torch.randn(4, 5, 6, dtype=DOUBLE, generator=generator).unbind()
    u, v = start(weight)

    def contracted(f: Callable[[Tensor], Tensor]) -> Tensor:
        w = weight.clone().requires_grad_()
        (g,) = torch.autograd.grad((f(w).square() * first).sum(), w, create_graph=True)
        (g,) = torch.autograd.grad((g * second).sum(), w, create_graph=True)
        return torch.autograd.grad((g * third).sum(), w)[0]

    ours, plain = contracted(lambda w: normalise(w, u, v)), contracted(lambda w: w / (u @ w @ v))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())


def test_the_gradient_is_the_formula_on_the_page() -> None:
    weight = torch.randn(6, 9, dtype=DOUBLE, requires_grad=True)
    upstream = torch.randn(6, 9, dtype=DOUBLE)
    (output,), u, v, (sigma,) = spectral_norm([weight], *start(weight), [0], 2, EPS, None)
    (grad,) = torch.autograd.grad(output, weight, upstream)
    inner = (upstream * weight.detach()).sum()
    torch.testing.assert_close(grad, upstream / sigma - inner / sigma**2 * torch.outer(u, v), rtol=1e-12, atol=1e-12)


def test_the_gradient_at_the_singular_vectors_is_that_of_the_true_norm() -> None:
    weight, left, right = with_spectrum(6, 8, [3.0, 2.0, 1.0])
    upstream = torch.randn(6, 8, dtype=DOUBLE)
    ours, truth = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    (mine,) = torch.autograd.grad(normalise(ours, left[:, 0].contiguous(), right[:, 0].contiguous()), ours, upstream)
    (exact,) = torch.autograd.grad(truth / torch.linalg.matrix_norm(truth, 2), truth, upstream)
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_a_member_of_a_group_that_is_not_used_has_no_gradient() -> None:
    used, unused = (torch.randn(4, 5, requires_grad=True) for _ in range(2))
    (output, _), u, v, _ = spectral_norm([used, unused], *start(used, unused), [0, 0], 1, EPS, None)
    upstream = torch.randn(4, 5)
    grad, none = torch.autograd.grad(output, (used, unused), upstream, allow_unused=True)
    assert none is None
    (alone,) = torch.autograd.grad(normalise(used, u[:4], v[:5]), used, upstream)
    torch.testing.assert_close(grad, alone)  # sigma is |W^T u| in one and u^T W v in the other


@pytest.mark.parametrize("n_iterations", [0, 1])
def test_vectors_and_sigma_are_constants(n_iterations: int) -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    (output,), *found = spectral_norm([weight], *start(weight), [0], n_iterations, EPS, None)
    assert output.requires_grad
    assert not any(tensor.requires_grad for tensor in (*found, *iterate([weight], start(weight), n_iterations)))


# ---- what PyTorch asks of an op


def a_group(*layouts: str) -> tuple[list[Tensor], Tensor, Tensor, Tensor, list[int]]:
    """Two weights in each layout, one of them a transposed convolution's; their vectors; their sigmas."""
    generator = torch.Generator().manual_seed(6)
    laid_out = [LAYOUTS[layout] for layout in layouts or ("channels-last",) for _ in range(2)]
    weights = [layout(torch.randn(5, 4, 3, 2, generator=generator)) for layout in laid_out]
    dims = [0, 1] * (len(weights) // 2)
    u, v = start(*map(matrix, weights, dims))
    *_, sigmas = power_iteration(weights, u, v, dims, 0, EPS)
    return weights, u, v, sigmas, dims


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("layouts", "checks"),
    [(list(LAYOUTS), QUICK), (["channels-last"], (*QUICK, "test_aot_dispatch_dynamic"))],
    ids=["every layout", "with compilation"],
)
def test_opcheck(layouts: list[str], checks: tuple[str, ...]) -> None:
    weights, u, v, sigmas, dims = a_group(*layouts)
    leaves = [w.detach().requires_grad_() for w in weights]
    generator = torch.Generator().manual_seed(8)
    grads = [torch.randn(w.shape, generator=generator).requires_grad_() for w in weights]
    for n_iterations in (0, 1):
        opcheck(power_iteration.overload, (weights, u, v, dims, n_iterations, EPS), test_utils=checks)
        for dtype in (None, torch.bfloat16):
            opcheck(spectral_norm.overload, (leaves, u, v, dims, n_iterations, EPS, dtype), test_utils=checks)
    opcheck(spectral_norm_backward.overload, (grads, leaves, u, v, sigmas, dims, EPS), test_utils=checks)


def test_arguments_are_left_alone_and_never_returned() -> None:
    weights, u, v, sigmas, dims = a_group()
    weights[1].zero_()  # not scaled, and still a copy
    sigmas[1] = 0.0
    grads = [torch.randn_like(w) for w in weights]
    given = [*weights, u, v, *grads, sigmas]
    before = [tensor.clone() for tensor in given]
    results: list[Tensor] = []
    for n_iterations in (0, 1, 3):
        results += power_iteration(weights, u, v, dims, n_iterations, EPS)
        normalised, *found = spectral_norm(weights, u, v, dims, n_iterations, EPS, None)
        results += [*normalised, *found]
    results += spectral_norm_backward(grads, weights, u, v, sigmas, dims, EPS)
    assert all(map(torch.equal, given, before))
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*given, *results)]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(compiler: str) -> None:
    weights, u, v, _, dims = a_group()
    leaves = [weight.requires_grad_() for weight in weights]

    def both(weights: list[Tensor]) -> tuple[list[Tensor], ...]:
        new_u, new_v, _ = power_iteration([w.detach() for w in weights], u, v, dims, 1, EPS)
        normalised, *found = spectral_norm(weights, new_u, new_v, dims, 1, EPS, torch.bfloat16)
        return normalised, [new_u, new_v, *found]

    def run(f: Callable[..., tuple[list[Tensor], ...]]) -> list[Tensor]:
        normalised, found = f(leaves)
        grads = torch.autograd.grad([w.float().square().sum() for w in normalised], leaves)
        return [*normalised, *found, *grads]

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = run(torch.compile(both, fullgraph=True, dynamic=False, backend=compiler))
    assert all(map(torch.equal, compiled, run(both)))


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    check_refusal(name)


def test_strided_vectors_are_read_as_they_are() -> None:
    weights, *constants, dims = a_group()
    strided = [torch.stack([x, -x], dim=1)[:, 0] for x in constants]

    def everything(u: Tensor, v: Tensor, sigmas: Tensor) -> list[Tensor]:
        results = [*spectral_norm_backward(weights, weights, u, v, sigmas, dims, EPS)]
        for n_iterations in (0, 1):
            normalised, *found = spectral_norm(weights, u, v, dims, n_iterations, EPS, None)
            results += [*normalised, *found, *power_iteration(weights, u, v, dims, n_iterations, EPS)]
        return results

    torch.testing.assert_close(everything(*strided), everything(*constants))


def test_rows_run_along_dim() -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert matrix(weight, 0).shape == (2, 12)
    assert torch.equal(matrix(weight, 1)[2], weight[:, 2].flatten())
