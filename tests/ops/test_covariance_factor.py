"""Factors of covariances of every rank, on the reference and on the C++ kernels: F F^T, and gradients through it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import EPS, random, rotation
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.covariance_factor import covariance_factor

pytestmark = pytest.mark.usefixtures("backend")


def expect(covariance: Tensor, rank: int) -> Tensor:
    """F of this rank, with F F^T the covariance but for a few roundings of two features' size a column, and zeros behind."""
    factor, found, rest, asymmetry = covariance_factor(covariance)
    size, units = len(covariance), deviations(covariance)
    assert found.dtype == torch.int64 and found == rank
    assert factor.shape == (size, size) and not factor[:, rank:].any()
    # shares are within a factor of two of those by the features' own deviations
    assert share(factor @ factor.T - covariance, units) <= 8 * EPS * size
    assert rest.item() <= 8 * EPS * size
    skew = share(covariance - covariance.T, units)
    assert skew / 2 <= asymmetry.item() <= skew * 2
    return factor


def deviations(covariance: Tensor) -> Tensor:
    roots = covariance.diagonal().clamp(min=0).sqrt()
    return torch.where(roots > 0, roots, roots.max() if roots.max() > 0 else 1.0)


def share(matrix: Tensor, units: Tensor) -> float:
    return ((matrix / units) / units[:, None]).abs().max().item()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 150), st.integers(0, 2**20))
def test_covariances_of_any_rank(size: int, rank: int, seed: int) -> None:
    rows = random(rank, size, seed=seed)
    expect(rows.T @ rows, min(rank, size))


@pytest.mark.parametrize("rank", [1, 47, 48, 49, 96, 97, 200])
def test_ranks_around_a_span(rank: int) -> None:
    rows = random(rank, 200)
    expect(rows.T @ rows, rank)


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1e40, 1e300])
def test_units_scale_out(scale: float) -> None:
    rows = random(30, 50)
    expect(rows.T @ rows * scale, 30)


def test_ill_conditioned_ones_keep_every_direction() -> None:
    spectrum = torch.logspace(0, -12, 60).double()
    turn = rotation(60)
    expect((turn * spectrum @ turn.T + (turn * spectrum @ turn.T).T) / 2, 60)


@pytest.mark.parametrize(("rank", "least"), [(7, -8), (60, -8), (60, -30)])
def test_features_of_any_scale_keep_their_own_digits(rank: int, least: int) -> None:
    scale = torch.logspace(0, least, 60).double()[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    rows = random(60 if rank < 60 else 90, rank) @ random(rank, 60, seed=1) if rank < 60 else random(90, 60)
    rows = rows * scale
    expect(rows.T @ rows, rank)


def test_one_feature_that_dwarfs_the_rest_costs_them_nothing() -> None:
    rows = random(90, 64)
    rows[:, 3] *= 1e12
    rows[:, 7] = rows[:, 3] * 1e-6  # one that follows it all the way
    expect(rows.T @ rows, 63)


def test_columns_go_from_large_to_small() -> None:
    scale = torch.logspace(0, -12, 30).double()
    rows = random(90, 30) * scale
    factor = expect(rows.T @ rows, 30)
    largest = factor.abs().max(dim=0).values
    assert (largest <= 10 * largest.cummin(dim=0).values).all() and largest[-1] <= 1e-9 * largest[0]


def test_features_rounded_to_float32_keep_theirs() -> None:
    scale = torch.logspace(0, -8, 80).double()
    rows = random(20, 80) * scale
    covariance = (rows.T @ rows).float().double()
    factor, _, rest, _ = covariance_factor(covariance)
    assert rest.item() <= 1e-5
    assert share(factor @ factor.T - covariance, deviations(covariance)) <= 1e-5


def test_negative_parts_of_small_features_are_left_over() -> None:
    small = torch.tensor([[1e6, 0, 0], [0, 1, 5], [0, 5, 1.0]], dtype=torch.float64)
    assert covariance_factor(small)[2].item() > 1
    assert covariance_factor(torch.tensor([1e6, 5, -5.0], dtype=torch.float64).diag())[2].item() >= 2e-6
    assert covariance_factor(torch.tensor([[0.0, 1], [1, 0]], dtype=torch.float64))[2].item() > 0.49


def test_diagonal_ones_and_zero() -> None:
    factor = expect(torch.diag(torch.tensor([0.0, 9.0, 0.0, 4.0]).double()), 2)
    assert sorted(factor.abs().max(dim=0).values.tolist()) == [0, 0, 2, 3]
    expect(torch.zeros(5, 5, dtype=torch.float64), 0)


@pytest.mark.parametrize("lowest", [-1e-3, -0.5, -2.0])
def test_negative_eigenvalues_are_left_over(lowest: float) -> None:
    turn = rotation(30)
    values = torch.linspace(0.5, 1, 30).double()
    values[3] = lowest
    _, _, rest, _ = covariance_factor(turn * values @ turn.T)
    assert rest.item() > -lowest / 30  # a matrix of this norm has an entry of at least its share


def test_rounding_to_float32_is_left_over_as_such() -> None:
    rows = random(20, 80)
    covariance = (rows.T @ rows).float().double()
    factor, rank, rest, _ = covariance_factor(covariance)
    assert rank >= 20 and rest.item() <= 1e-5
    assert (factor @ factor.T - covariance).abs().max().item() <= 1e-5 * covariance.max().item()


def test_of_any_matrix_the_symmetric_part_is_factored() -> None:
    rows, skew = random(60, 40), random(40, 40, seed=1)
    covariance = rows.T @ rows
    given = covariance + (skew - skew.T)
    factor, rank, rest, asymmetry = covariance_factor(given)
    skew = share(given - given.T, deviations(given))
    assert rank == 40 and rest <= 1e-12 and skew / 2 <= asymmetry.item() <= 2 * skew
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=0, atol=1e-11)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_make_it_nan(bad: float) -> None:
    covariance = torch.eye(30, dtype=torch.float64)
    covariance[4, 4] = bad
    factor, _, rest, asymmetry = covariance_factor(covariance)
    assert factor.isnan().all() and rest.isnan() and asymmetry.isnan()


@pytest.mark.parametrize("x", [torch.zeros(3, 3), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
def test_what_does_not_fit_is_refused(x: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"expected a covariance \(n, n\) in float64"):
        covariance_factor(x)


# ---- gradients of what depends on F F^T alone


def square(rows: Tensor) -> Tensor:
    """tr (S W S), by the factor of S = rows^T rows."""
    factor = covariance_factor(rows.T @ rows)[0]
    weight = torch.diag(torch.arange(1.0, rows.shape[1] + 1).double())
    return (factor.T @ weight @ factor @ factor.T @ factor).trace()


def test_gradients_for_full_rank() -> None:
    assert torch.autograd.gradcheck(square, random(9, 4).requires_grad_())


def test_gradients_where_scales_differ() -> None:
    # in units of each feature's deviation the same function, and so the same gradient
    scale = torch.logspace(0, -8, 12).double()
    rows = random(40, 12)
    correlated, scaled = rows.T @ rows, (rows * scale).T @ (rows * scale)

    def gradient(covariance: Tensor, unit: Tensor) -> Tensor:
        covariance.requires_grad_()
        factor = covariance_factor(covariance)[0] / unit[:, None]
        (found,) = torch.autograd.grad((factor @ factor.T).square().sum(), covariance)
        return found * unit * unit[:, None]

    torch.testing.assert_close(gradient(scaled, scale), gradient(correlated, torch.ones(12).double()), rtol=1e-9, atol=1e-9)


def test_gradients_of_singular_covariances_along_their_range() -> None:
    # moving rows keeps the rank; the part of the gradient that would change it meets nothing
    assert torch.autograd.gradcheck(square, random(3, 6).requires_grad_())


def test_a_second_derivative_is_refused() -> None:
    rows = random(9, 4).requires_grad_()
    (first,) = torch.autograd.grad(square(rows), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first.sum(), rows)


def test_opcheck() -> None:
    rows = random(9, 4)
    opcheck(torch.ops.ganfast.covariance_factor.default, (rows.T @ rows,))
    opcheck(
        torch.ops.ganfast.covariance_factor.default,
        ((rows.T @ rows).requires_grad_(),),
        test_utils=("test_schema", "test_faketensor"),
    )
