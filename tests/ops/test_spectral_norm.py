"""Spectral norm against the truth, and what PyTorch asks of an op: on the reference and on every backend that was built."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import EMPTY, LAYOUTS, Weight
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.spectral_norm import matrix, power_iteration, spectral_normalise, spectral_normalise_backward

EPS = 1e-12
DOUBLE = torch.float64
pytestmark = pytest.mark.usefixtures("backend")


def with_spectrum(rows: int, columns: int, spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with these singular values, and its left and right singular vectors as columns."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(spectrum), dtype=DOUBLE, generator=generator)).Q for size in (rows, columns)
    )
    return left * torch.tensor(spectrum, dtype=DOUBLE) @ right.T, left, right


def start(*matrices: Tensor, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    dtypes = [torch.promote_types(w.dtype, torch.float32) for w in matrices]
    vectors = [
        [torch.randn(w.shape[axis], dtype=d, generator=generator) for w, d in zip(matrices, dtypes, strict=True)]
        for axis in (0, 1)
    ]
    us, vs = ([vector / vector.norm() for vector in side] for side in vectors)
    return us, vs


def iterate(
    weights: list[Tensor], vectors: tuple[list[Tensor], list[Tensor]], n_iterations: int
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """For matrices whose rows run along dim 0."""
    return power_iteration(weights, *vectors, [0] * len(weights), n_iterations, EPS)


def normalise(weight: Tensor, u: Tensor, v: Tensor, dim: int = 0) -> Tensor:
    """W / sigma as the layer has it: sigma for these vectors."""
    *_, sigmas = power_iteration([weight.detach()], [u], [v], [dim], 0, EPS)
    return spectral_normalise([weight], [u], [v], sigmas, [dim], EPS, None)[0]


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
    (u,), (v,), (sigma,) = iterate([weight], start(weight), iterations)
    assert sigma.item() == pytest.approx(spectrum[0], rel=1e-12)
    assert abs(u.dot(left[:, 0]).item()) == pytest.approx(1.0, abs=1e-10)
    assert abs(v.dot(right[:, 0]).item()) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("iterations", [1, 2, 7, 40])
def test_every_iteration_is_the_closed_form(gap: float, iterations: int) -> None:
    """From v = sum of c_i r_i, k iterations make u of c_i s_i^(2k-1) l_i, and v of c_i s_i^(2k) r_i."""
    spectrum = [1.0 + gap, 1.0, 0.9, 0.5, 0.1]
    weight, left, right = with_spectrum(23, 14, spectrum)
    us, vs = start(weight)
    powers = torch.tensor(spectrum, dtype=DOUBLE) / spectrum[0]
    by_u, by_v = (right.T @ vs[0] * powers ** (2 * iterations - less) for less in (1, 0))
    (u,), (v,), (sigma,) = iterate([weight], (us, vs), iterations)
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
    (us, vs) = start(w.float())
    us, vs, (sigma,) = power_iteration([weight], us, vs, [dim], 40, EPS)
    *_, (at_rest,) = power_iteration([weight], us, vs, [dim], 0, EPS)
    truth = torch.linalg.eigvalsh(w @ w.T if w.shape[0] < w.shape[1] else w.T @ w)[-1].sqrt().item()
    # float32's eps is 1.2e-7, and the sums have a few roundings more; PyTorch's own products and norms add the 2^20 numbers up
    # in a few lanes, and are 6e-4 off
    assert [sigma.item(), at_rest.item()] == pytest.approx([truth] * 2, rel=2e-3 if backend == "reference" else 1e-6)


def test_sigma_never_overshoots_and_never_falls() -> None:
    weight = torch.randn(30, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    largest = torch.linalg.svdvals(weight)[0].item()
    us, vs = start(weight)
    sigmas = []
    for _ in range(40):
        us, vs, (sigma,) = iterate([weight], (us, vs), 1)
        sigmas.append(sigma.item())
    assert all(before <= after * (1 + 1e-14) for before, after in itertools.pairwise(sigmas))
    assert 0.97 * largest < sigmas[-1] <= largest * (1 + 1e-14)


def test_the_third_product_is_indeed_redundant() -> None:
    weight = torch.randn(9, 14, dtype=DOUBLE)
    (u,), (v,), (sigma,) = iterate([weight], start(weight), 2)
    assert sigma.item() == pytest.approx((u @ weight @ v).item(), rel=1e-14)


def test_without_iterations_sigma_comes_from_the_given_vectors() -> None:
    weight = torch.randn(9, 14, dtype=DOUBLE)
    us, vs = start(weight)
    new_us, new_vs, (sigma,) = iterate([weight], (us, vs), 0)
    assert torch.equal(new_us[0], us[0])
    assert torch.equal(new_vs[0], vs[0])
    # the terms of u^T W v may cancel, so the error is absolute: 126 of them of size 0.1
    assert sigma.item() == pytest.approx((us[0] @ weight @ vs[0]).item(), abs=1e-14)


def test_many_iterations_are_single_ones_in_turn() -> None:
    weight = torch.randn(11, 40)
    us, vs = start(weight)
    at_once = iterate([weight], (us, vs), 3)
    for _ in range(3):
        us, vs, sigmas = iterate([weight], (us, vs), 1)
    assert all(map(torch.equal, (*at_once[0], *at_once[1], at_once[2]), (*us, *vs, sigmas)))


def test_a_group_is_its_members_one_by_one() -> None:
    weights = [torch.randn(shape) for shape in [(3, 8), (5, 5), (1, 7), (64, 9), (300, 700)]]
    us, vs = start(*weights)
    together = iterate(weights, (us, vs), 3)
    for i, weight in enumerate(weights):
        alone = iterate([weight], ([us[i]], [vs[i]]), 3)
        for group, single in zip(together, alone, strict=True):
            assert torch.equal(group[i], single[0])


def test_no_weights_at_all() -> None:
    us, vs, sigmas = power_iteration([], [], [], [], 1, EPS)
    assert (us, vs, sigmas.shape) == ([], [], (0,))
    assert spectral_normalise([], [], [], sigmas, [], EPS, None) == []
    assert spectral_normalise_backward([], [], [], [], sigmas, [], EPS) == []


# ---- what has no direction, and what is no number


@pytest.mark.parametrize(("size", "n_iterations"), [(0.0, 5), (0.0, 0), (1e-14, 5)])
def test_what_is_shorter_than_eps_keeps_its_vectors_and_is_not_scaled(size: float, n_iterations: int) -> None:
    weight = torch.full((4, 6), size, requires_grad=True)
    us, vs = start(weight)
    (u,), (v,), sigmas = iterate([weight.detach()], (us, vs), n_iterations)
    assert torch.equal(u, us[0])
    assert torch.equal(v, vs[0])
    assert abs(sigmas.item()) <= (EPS if size else 0.0)
    (output,) = spectral_normalise([weight], [u], [v], sigmas, [0], EPS, None)
    assert torch.equal(output, weight)
    upstream = torch.randn(4, 6)
    (grad,) = torch.autograd.grad(output, weight, upstream)
    assert torch.equal(grad, upstream)


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_a_weight_without_elements_is_a_zero_matrix(case: Weight) -> None:
    weight = torch.empty(case.shape)
    us, vs = start(matrix(weight, case.dim))
    for n_iterations in (0, 2):
        (u,), (v,), sigmas = power_iteration([weight], us, vs, [case.dim], n_iterations, EPS)
        assert torch.equal(u, us[0])
        assert torch.equal(v, vs[0])
        assert sigmas.tolist() == [0.0]
    (output,) = spectral_normalise([weight], us, vs, sigmas, [case.dim], EPS, torch.bfloat16)
    (grad,) = spectral_normalise_backward([output], [weight], us, vs, sigmas, [case.dim], EPS)
    assert (output.shape, output.dtype) == (case.shape, torch.bfloat16)
    assert (grad.shape, grad.dtype) == (case.shape, torch.float32)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_and_inf_show(broken: float) -> None:
    weights = [torch.randn(4, 6), torch.randn(4, 6)]
    weights[0][2, 3] = broken
    (u, sound_u), (v, sound_v), (sigma, sound_sigma) = iterate(weights, start(*weights), 1)
    assert not u.isfinite().all()
    assert not v.isfinite().all()
    assert not sigma.isfinite()
    assert all(tensor.isfinite().all() for tensor in (sound_u, sound_v, sound_sigma))


# ---- low types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    weight = with_spectrum(8, 4096, [60.0, 30.0, 20.0, 10.0])[0].to(dtype)
    (u,), (v,), (sigma,) = iterate([weight], start(weight), 40)
    assert {u.dtype, v.dtype, sigma.dtype} == {torch.float32}
    # a sum in bfloat16 would be 1e-3 off
    assert sigma.item() == pytest.approx(torch.linalg.svdvals(weight.double())[0].item(), rel=1e-5)


def test_autocast_changes_nothing() -> None:
    weight = torch.randn(8, 300, requires_grad=True)
    us, vs = start(weight)

    def everything() -> list[Tensor]:
        (u,), (v,), sigmas = iterate([weight.detach()], (us, vs), 2)
        output = normalise(weight, u, v)
        (grad,) = torch.autograd.grad(output.square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), weight)
        return [u, v, sigmas, output, grad, second]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = everything()
    assert all(map(torch.equal, under_autocast, expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_normalised_weight_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(30, 50, requires_grad=True)
    us, vs = start(weight)
    us, vs, sigmas = iterate([weight.detach()], (us, vs), 3)
    (output,) = spectral_normalise([weight], us, vs, sigmas, [0], EPS, dtype)
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
    (u,), (v,) = start(matrix(weight.detach(), dim))
    assert torch.autograd.gradcheck(lambda w: normalise(w, u, v, dim), weight)
    assert torch.autograd.gradgradcheck(lambda w: normalise(w, u, v, dim), weight)


def test_the_third_derivative_is_that_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, first, second, third = torch.randn(4, 5, 6, dtype=DOUBLE, generator=generator).unbind()
    (u,), (v,) = start(weight)

    def contracted(f: Callable[[Tensor], Tensor]) -> Tensor:
        w = weight.clone().requires_grad_()
        (g,) = torch.autograd.grad((f(w) * first).sum(), w, create_graph=True)
        (g,) = torch.autograd.grad((g * second).sum(), w, create_graph=True)
        return torch.autograd.grad((g * third).sum(), w)[0]

    ours, plain = contracted(lambda w: normalise(w, u, v)), contracted(lambda w: w / (u @ w @ v))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9 * plain.abs().max().item())


def test_the_gradient_is_the_formula_on_the_page() -> None:
    weight = torch.randn(6, 9, dtype=DOUBLE, requires_grad=True)
    (u,), (v,), (sigma,) = iterate([weight.detach()], start(weight), 2)
    upstream = torch.randn(6, 9, dtype=DOUBLE)
    (grad,) = torch.autograd.grad(normalise(weight, u, v), weight, upstream)
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
    us, vs, sigmas = iterate([used.detach(), unused.detach()], start(used, unused), 1)
    output, _ = spectral_normalise([used, unused], us, vs, sigmas, [0, 0], EPS, None)
    upstream = torch.randn(4, 5)
    grad, none = torch.autograd.grad(output, (used, unused), upstream)
    assert torch.equal(none, torch.zeros(4, 5))
    (alone,) = torch.autograd.grad(normalise(used, us[0], vs[0]), used, upstream)
    torch.testing.assert_close(grad, alone)  # sigma is |W^T u| in one and u^T W v in the other


@pytest.mark.parametrize("n_iterations", [0, 1])
def test_vectors_and_sigma_are_constants(n_iterations: int) -> None:
    weight = torch.randn(4, 5, requires_grad=True)
    us, vs, sigmas = iterate([weight], start(weight), n_iterations)
    assert not any(tensor.requires_grad for tensor in (*us, *vs, sigmas))


# ---- what PyTorch asks of an op


def a_group(layout: str = "channels-last") -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor, list[int]]:
    """Two weights in a layout, one of them a transposed convolution's; their vectors; their sigmas."""
    generator = torch.Generator().manual_seed(6)
    weights = [LAYOUTS[layout](torch.randn(5, 4, 3, 2, generator=generator)) for _ in range(2)]
    dims = [0, 1]
    us, vs = start(*map(matrix, weights, dims))
    *_, sigmas = power_iteration(weights, us, vs, dims, 0, EPS)
    return weights, us, vs, sigmas, dims


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("layouts", "checks"),
    [(list(LAYOUTS), QUICK), (["channels-last"], (*QUICK, "test_aot_dispatch_dynamic"))],
    ids=["every layout", "with compilation"],
)
def test_opcheck(layouts: list[str], checks: tuple[str, ...]) -> None:
    groups = [a_group(layout) for layout in layouts]
    weights, us, vs, dims = ([entry for group in groups for entry in group[i]] for i in (0, 1, 2, 4))
    sigmas = torch.cat([group[3] for group in groups])
    leaves = [w.detach().requires_grad_() for w in weights]
    grads = [torch.randn(w.shape).requires_grad_() for w in weights]
    for n_iterations in (0, 1):
        opcheck(power_iteration, (weights, us, vs, dims, n_iterations, EPS), test_utils=checks)
    for dtype in (None, torch.bfloat16):
        opcheck(spectral_normalise, (leaves, us, vs, sigmas, dims, EPS, dtype), test_utils=checks)
    opcheck(spectral_normalise_backward, (grads, leaves, us, vs, sigmas, dims, EPS), test_utils=checks)


def test_arguments_are_left_alone_and_never_returned() -> None:
    weights, us, vs, sigmas, dims = a_group()
    weights[1].zero_()  # not scaled, and still a copy
    sigmas[1] = 0.0
    grads = [torch.randn_like(w) for w in weights]
    given = [*weights, *us, *vs, *grads, sigmas]
    before = [tensor.clone() for tensor in given]
    results: list[Tensor] = []
    for n_iterations in (0, 1, 3):
        new_us, new_vs, new_sigmas = power_iteration(weights, us, vs, dims, n_iterations, EPS)
        results += [*new_us, *new_vs, new_sigmas]
    results += spectral_normalise(weights, us, vs, sigmas, dims, EPS, None)
    results += spectral_normalise_backward(grads, weights, us, vs, sigmas, dims, EPS)
    assert all(map(torch.equal, given, before))
    memory = [tensor.untyped_storage().data_ptr() for tensor in (*given, *results)]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(compiler: str) -> None:
    weights, us, vs, _, dims = a_group()
    leaves = [weight.requires_grad_() for weight in weights]

    def both(weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        new_us, new_vs, sigmas = power_iteration([w.detach() for w in weights], us, vs, dims, 1, EPS)
        return spectral_normalise(weights, new_us, new_vs, sigmas, dims, EPS, torch.bfloat16), new_us, new_vs

    def run(f: Callable[..., tuple[list[Tensor], ...]]) -> list[Tensor]:
        normalised, new_us, new_vs = f(leaves)
        grads = torch.autograd.grad([w.float().square().sum() for w in normalised], leaves)
        return [*normalised, *new_us, *new_vs, *grads]

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled = run(torch.compile(both, fullgraph=True, dynamic=False, backend=compiler))
    assert all(map(torch.equal, compiled, run(both)))


@pytest.mark.parametrize(
    "broken",
    [
        {"us": lambda us: us[:1]},
        {"vs": lambda vs: vs[:1]},
        {"dims": lambda dims: dims[:1]},
        {"dims": lambda dims: [0, 4]},
        {"vs": lambda vs: [vs[0], vs[1][:-1].clone()]},
        {"us": lambda us: [us[0], torch.cat([us[1], us[1]])]},
    ],
    ids=["a u missing", "a v missing", "a dim missing", "no such dim", "a short v", "a long u"],
)
def test_lists_that_do_not_fit_are_refused(broken: dict[str, Callable[..., object]]) -> None:
    weights, us, vs, _, dims = a_group("contiguous")
    arguments: dict[str, object] = {"us": us, "vs": vs, "dims": dims}
    for name, damage in broken.items():
        arguments[name] = damage(arguments[name])
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        power_iteration(weights, arguments["us"], arguments["vs"], arguments["dims"], 1, EPS)


def test_strided_vectors_are_read_as_they_are() -> None:
    weights, us, vs, sigmas, dims = a_group()
    strided_us, strided_vs = ([torch.stack([x, -x], dim=1)[:, 0] for x in side] for side in (us, vs))
    strided_sigmas = torch.stack([sigmas, -sigmas], dim=1)[:, 0]
    strided = (strided_us, strided_vs)
    pairs = [
        *zip(power_iteration(weights, us, vs, dims, 1, EPS), power_iteration(weights, *strided, dims, 1, EPS), strict=True),
        (
            spectral_normalise(weights, us, vs, sigmas, dims, EPS, None),
            spectral_normalise(weights, *strided, strided_sigmas, dims, EPS, None),
        ),
        (
            spectral_normalise_backward(weights, weights, us, vs, sigmas, dims, EPS),
            spectral_normalise_backward(weights, weights, *strided, strided_sigmas, dims, EPS),
        ),
    ]
    for expected, got in pairs:
        torch.testing.assert_close(list(got), list(expected))


def test_rows_run_along_dim() -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert matrix(weight, 0).shape == (2, 12)
    assert torch.equal(matrix(weight, 1)[2], weight[:, 2].flatten())
