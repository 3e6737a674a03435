"""The nuclear norm against closed forms and fifty digits, on the reference and on the C++ kernels; and its gradients."""

from __future__ import annotations

import math

import mpmath  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import EPS, random, rotation, with_singular_values
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.nuclear_norm import nuclear_norm

pytestmark = pytest.mark.usefixtures("backend")
# sizes around a band of 24, two of them and a tile of 8, and long ones either way
SHAPES = [
    (1, 1),
    (1, 5),
    (7, 1),
    (8, 8),
    (23, 24),
    (24, 24),
    (25, 25),
    (47, 50),
    (49, 48),
    (73, 120),
    (300, 9),
    (9, 300),
    (201, 211),
]


def expect(found: Tensor, expected: float, largest: float, count: int) -> None:
    """Ten roundings of the largest singular value for each: the reductions' backward error, with room."""
    assert found.shape == () and found.dtype == torch.float64
    assert abs(found.item() - expected) <= 10 * EPS * largest * count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_known_singular_values(shape: tuple[int, int]) -> None:
    count = min(shape)
    for values in (torch.linspace(1, 3, count).double(), torch.logspace(0, -12, count).double(), torch.ones(count).double()):
        expect(nuclear_norm(with_singular_values(values, *shape)), values.sum().item(), values.max().item(), count)


@pytest.mark.parametrize("shape", [(6, 6), (30, 30), (12, 31)], ids=str)
def test_fifty_digits(shape: tuple[int, int]) -> None:
    x = random(*shape, seed=3) * torch.logspace(0, -9, shape[1]).double()
    with mpmath.workdps(50):
        values = mpmath.svd_r(mpmath.matrix(x.tolist()), compute_uv=False)
        expected, largest = float(mpmath.fsum(values)), float(values[0])
    expect(nuclear_norm(x), expected, largest, min(shape))


@pytest.mark.parametrize("shape", [(40, 40), (130, 70)], ids=str)
def test_lower_ranks_add_nothing(shape: tuple[int, int]) -> None:
    for rank in (1, 2, 25):
        values = torch.linspace(2, 1, rank).double()
        expect(nuclear_norm(with_singular_values(values, *shape)), values.sum().item(), 2.0, min(shape))
    assert nuclear_norm(torch.zeros(shape, dtype=torch.float64)) == 0


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-20, 1e20, 1e160, 1e300])
def test_units_scale_out(scale: float) -> None:
    x = random(50, 60)
    assert nuclear_norm(x * scale).item() == pytest.approx(nuclear_norm(x).item() * scale, rel=1e-13)


def test_a_huge_and_a_tiny_block_keep_their_digits() -> None:
    # the band's and the sum's arithmetic is relative to the largest; a diagonal matrix needs no reduction to spoil it
    diagonal = torch.cat([torch.full((30,), 1.0), torch.full((30,), 1e-30)]).double()
    assert nuclear_norm(torch.diag(diagonal)).item() == pytest.approx(30.0, rel=1e-15)
    assert nuclear_norm(torch.diag(diagonal[30:])).item() == pytest.approx(30e-30, rel=1e-14)


def test_layouts_and_nothing() -> None:
    x = random(40, 60)
    expected = nuclear_norm(x)
    for other in (x.T.contiguous().T, torch.stack([x, x], dim=2)[..., 0], x.T):
        assert nuclear_norm(other).item() == pytest.approx(expected.item(), rel=1e-14)
    for shape in ((0, 0), (0, 3), (3, 0)):
        assert nuclear_norm(torch.zeros(shape, dtype=torch.float64)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_make_it_nan(bad: float) -> None:
    x = random(30, 30)
    x[17, 3] = bad
    assert nuclear_norm(x).isnan()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_norm(x), x)
    assert gradient.isnan().all()


@pytest.mark.parametrize("x", [torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3), torch.zeros(2, 3, 3, dtype=torch.float64)])
def test_what_does_not_fit_is_refused(x: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"expected x \(m, n\) in float64"):
        nuclear_norm(x)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**20))
def test_norm_axioms(rows: int, columns: int, seed: int) -> None:
    x, y = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    norm = nuclear_norm(x).item()
    frobenius = x.norm().item()
    assert frobenius * (1 - 1e-14) <= norm <= math.sqrt(min(rows, columns)) * frobenius * (1 + 1e-14)
    assert nuclear_norm(x + y).item() <= (norm + nuclear_norm(y).item()) * (1 + 1e-14)
    assert nuclear_norm(rotation(rows) @ x).item() == pytest.approx(norm, rel=1e-13)


# ---- gradients


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (2, 5)], ids=str)
def test_gradients_of_first_and_second_order(shape: tuple[int, int]) -> None:
    x = random(*shape).requires_grad_()
    assert torch.autograd.gradcheck(nuclear_norm, x)
    assert torch.autograd.gradgradcheck(nuclear_norm, x)


def test_repeated_singular_values_have_gradients() -> None:
    x = rotation(5).requires_grad_()  # all of them are one: the polar factor is x itself, and the derivative of a skew part
    assert torch.autograd.gradcheck(nuclear_norm, x)
    (gradient,) = torch.autograd.grad(nuclear_norm(x), x, create_graph=True)
    torch.testing.assert_close(gradient, x.detach(), rtol=0, atol=1e-14)
    assert torch.autograd.gradgradcheck(nuclear_norm, x)


def test_at_a_lower_rank_the_gradient_is_the_shortest_of_the_subgradients() -> None:
    u, v = rotation(6)[:, :2], rotation(7, 1)[:, :2]
    x = (u * torch.tensor([3.0, 0.5]).double() @ v.T).requires_grad_()
    (gradient,) = torch.autograd.grad(nuclear_norm(x), x)
    torch.testing.assert_close(gradient, u @ v.T, rtol=0, atol=1e-14)
    zero = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    assert not torch.autograd.grad(nuclear_norm(zero), zero)[0].any()


def test_a_third_derivative_is_refused() -> None:
    x = random(4, 4).requires_grad_()
    (first,) = torch.autograd.grad(nuclear_norm(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum() + first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(second.sum(), x)


def test_opcheck() -> None:
    opcheck(torch.ops.ganfast.nuclear_norm.default, (random(5, 4),))
    opcheck(torch.ops.ganfast.nuclear_norm.default, (random(5, 4).requires_grad_(),))


def test_transforms_go_through() -> None:
    x = random(4, 4)
    expected = torch.autograd.grad(nuclear_norm(x.requires_grad_()), x)[0]
    torch.testing.assert_close(torch.func.grad(nuclear_norm)(x.detach()), expected, rtol=0, atol=1e-13)
