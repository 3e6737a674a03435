from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ganfast.ops.spectral_norm import matrix, normalise, reference

EPS = 1e-12
DOUBLE = torch.float64


def with_spectrum(rows: int, columns: int, spectrum: list[float], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix with these singular values, and its first left and right singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(size, len(spectrum), dtype=DOUBLE, generator=generator)).Q for size in (rows, columns)
    )
    return left * torch.tensor(spectrum, dtype=DOUBLE) @ right.T, left[:, 0], right[:, 0]


def start(*weights: Tensor, seed: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    dtypes = [torch.promote_types(w.dtype, torch.float32) for w in weights]
    vectors = [
        [torch.randn(w.shape[axis], dtype=d, generator=generator) for w, d in zip(weights, dtypes, strict=True)]
        for axis in (0, 1)
    ]
    us, vs = ([vector / vector.norm() for vector in side] for side in vectors)
    return us, vs


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
    (u,), (v,), (sigma,) = reference([weight], *start(weight), iterations, EPS)
    assert sigma.item() == pytest.approx(spectrum[0], rel=1e-12)
    assert abs(u.dot(left).item()) == pytest.approx(1.0, abs=1e-10)
    assert abs(v.dot(right).item()) == pytest.approx(1.0, abs=1e-10)


def test_sigma_never_overshoots_and_never_falls() -> None:
    weight = torch.randn(30, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    largest = torch.linalg.svdvals(weight)[0].item()
    us, vs = start(weight)
    sigmas = []
    for _ in range(40):
        us, vs, (sigma,) = reference([weight], us, vs, 1, EPS)
        sigmas.append(sigma.item())
    assert all(before <= after * (1 + 1e-14) for before, after in itertools.pairwise(sigmas))
    assert 0.97 * largest < sigmas[-1] <= largest * (1 + 1e-14)


def test_the_tiny_gap_still_bounds_sigma_between_the_two_values() -> None:
    weight, _, _ = with_spectrum(20, 20, [1.0, 1.0 - 1e-6, 0.1])
    *_, (sigma,) = reference([weight], *start(weight), 40, EPS)
    assert 1.0 - 1e-6 <= sigma.item() <= 1.0 + 1e-14


def test_the_third_product_is_indeed_redundant() -> None:
    weight = torch.randn(9, 14, dtype=DOUBLE)
    (u,), (v,), (sigma,) = reference([weight], *start(weight), 2, EPS)
    assert sigma.item() == pytest.approx((u @ weight @ v).item(), rel=1e-14)


def test_without_iterations_sigma_comes_from_the_given_vectors() -> None:
    weight = torch.randn(9, 14)
    us, vs = start(weight)
    new_us, new_vs, (sigma,) = reference([weight], us, vs, 0, EPS)
    assert torch.equal(new_us[0], us[0])
    assert torch.equal(new_vs[0], vs[0])
    assert sigma.item() == pytest.approx((us[0] @ weight @ vs[0]).item(), rel=1e-6)


def test_a_group_is_its_members_one_by_one_and_arguments_are_left_alone() -> None:
    weights = [torch.randn(shape) for shape in [(3, 8), (5, 5), (1, 7), (64, 9)]]
    us, vs = start(*weights)
    before = [tensor.clone() for tensor in (*weights, *us, *vs)]
    together = reference(weights, us, vs, 3, EPS)
    for i, weight in enumerate(weights):
        alone = reference([weight], [us[i]], [vs[i]], 3, EPS)
        for group, single in zip(together, alone, strict=True):
            assert torch.equal(group[i], single[0])
    assert all(torch.equal(x, y) for x, y in zip(before, (*weights, *us, *vs), strict=True))
    assert reference([], [], [], 1, EPS) == ([], [], [])


def test_a_zero_matrix_keeps_its_vectors_and_has_sigma_zero() -> None:
    weight = torch.zeros(4, 6)
    us, vs = start(weight)
    (u,), (v,), (sigma,) = reference([weight], us, vs, 5, EPS)
    assert sigma.item() == 0.0
    assert torch.equal(u, us[0])
    assert torch.equal(v, vs[0])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_show(poison: float) -> None:
    weight = torch.randn(4, 6)
    weight[2, 3] = poison
    (u,), (v,), (sigma,) = reference([weight], *start(weight), 1, EPS)
    assert not u.isfinite().all()
    assert not v.isfinite().all()
    assert not sigma.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    weight = with_spectrum(8, 4096, [60.0, 30.0, 20.0, 10.0])[0].to(dtype)
    (u,), (v,), (sigma,) = reference([weight], *start(weight), 40, EPS)
    assert {u.dtype, v.dtype, sigma.dtype} == {torch.float32}
    assert sigma.item() == pytest.approx(torch.linalg.svdvals(weight.double())[0].item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        *_, (under_autocast,) = reference([weight], [u], [v], 0, EPS)
    assert under_autocast.item() == pytest.approx(sigma.item(), rel=1e-5)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((4, 3, 2, 2), 0), ((4, 3, 2, 2), 1), ((3, 5, 3), 1)])
def test_the_gradient_is_exact_to_second_order(shape: tuple[int, ...], dim: int) -> None:
    weight = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(2), requires_grad=True)
    (u,), (v,) = start(matrix(weight.detach(), dim))
    assert torch.autograd.gradcheck(lambda w: normalise(w, u, v, dim, EPS), weight)
    assert torch.autograd.gradgradcheck(lambda w: normalise(w, u, v, dim, EPS), weight)


def test_the_gradient_is_the_formula_on_the_page() -> None:
    weight = torch.randn(6, 9, dtype=DOUBLE, requires_grad=True)
    (u,), (v,), (sigma,) = reference([weight.detach()], *start(weight.detach()), 2, EPS)
    upstream = torch.randn(6, 9, dtype=DOUBLE)
    (grad,) = torch.autograd.grad(normalise(weight, u, v, 0, EPS), weight, upstream)
    inner = (upstream * weight.detach()).sum()
    torch.testing.assert_close(grad, upstream / sigma - inner / sigma**2 * torch.outer(u, v), rtol=1e-12, atol=1e-12)


def test_the_gradient_at_the_singular_vectors_is_that_of_the_true_norm() -> None:
    weight, left, right = with_spectrum(6, 8, [3.0, 2.0, 1.0])
    upstream = torch.randn(6, 8, dtype=DOUBLE)
    ours, truth = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    (mine,) = torch.autograd.grad(normalise(ours, left, right, 0, EPS), ours, upstream)
    (exact,) = torch.autograd.grad(truth / torch.linalg.matrix_norm(truth, 2), truth, upstream)
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_a_zero_matrix_is_not_scaled_and_passes_its_gradient() -> None:
    weight = torch.zeros(3, 4, requires_grad=True)
    (u,), (v,) = start(weight.detach())
    output = normalise(weight, u, v, 0, EPS)
    assert torch.equal(output, torch.zeros(3, 4))
    (grad,) = torch.autograd.grad(output.sum(), weight)
    assert torch.equal(grad, torch.ones(3, 4))


def test_rows_run_along_dim() -> None:
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert matrix(weight, 0).shape == (2, 12)
    assert torch.equal(matrix(weight, 1)[2], weight[:, 2].flatten())
