"""Distances of pairs of rows against exact rational arithmetic, and the same bits for a pair, on the reference and in C++."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from matrices import EPS, random
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.pair_distances import pair_distances

pytestmark = pytest.mark.usefixtures("backend")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows_of(count: int, pairs: int, seed: int = 0) -> Tensor:
    return torch.randint(count, (pairs,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 32, 33, 200])
def test_exact_distances(width: int, dtype: torch.dtype) -> None:
    x, y = (random(9, width) + 100).to(dtype), (random(5, width, seed=1) + 100).to(dtype)
    i, j = rows_of(9, 30), rows_of(5, 30, seed=1)
    found = pair_distances(x, y, i, j)
    assert found.dtype == torch.float64
    for p in range(30):
        terms = zip(x[i[p]].double().tolist(), y[j[p]].double().tolist(), strict=True)
        square = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in terms)
        # a rounding for the difference, one for the square, one for each addition; halved by the root
        assert abs(found[p].item() - math.sqrt(square)) <= (width + 4) * EPS * math.sqrt(square)


@pytest.mark.parametrize("width", [3, 64, 517])
def test_a_pair_has_the_same_bits_in_any_company_and_order(width: int) -> None:
    x, y = random(40, width).float(), random(30, width, seed=1).float()
    i, j = (grid.flatten() for grid in torch.meshgrid(torch.arange(40), torch.arange(30), indexing="ij"))
    every = pair_distances(x, y, i, j).view(40, 30)
    assert torch.equal(every, pair_distances(y, x, j, i).view(40, 30))
    assert torch.equal(every, pair_distances(x.double(), y.double(), i, j).view(40, 30))
    for a, b in ((0, 0), (39, 29), (17, 4)):
        assert pair_distances(x[a:], y, torch.tensor([0]), torch.tensor([b])).item() == every[a, b].item()
    assert (pair_distances(x, x, torch.arange(40), torch.arange(40)) == 0).all()


def test_any_layout_and_no_pairs() -> None:
    x, i, j = random(20, 12), rows_of(20, 50), rows_of(20, 50, seed=1)
    expected = pair_distances(x, x, i, j)
    laid_out = torch.stack([x, x], 2)[..., 1]
    assert torch.equal(expected, pair_distances(x.T.contiguous().T, laid_out, torch.stack([i, j], 1)[:, 0], j))
    assert pair_distances(x, x, i[:0], j[:0]).shape == (0,)


def test_nan_and_infinities() -> None:
    x = random(4, 40)
    x[1, 33], x[2, 5] = torch.nan, torch.inf
    found = pair_distances(x, x, torch.tensor([0, 0, 1, 2, 0]), torch.tensor([1, 2, 2, 2, 3]))
    assert found.isnan().tolist() == [True, False, True, True, False]
    assert found.isinf().tolist() == [False, True, False, False, False]


def test_what_does_not_fit_is_refused() -> None:
    x, y, i, j = random(5, 3), random(6, 3), torch.tensor([4, 0]), torch.tensor([5, 1])
    for bad in ((x, random(6, 4), i, j), (x[0], y, i, j), (x, y.float(), i, j), (x, y, i[:1], j), (x, y, i.int(), j.int())):
        with pytest.raises((ValueError, RuntimeError), match="expected"):
            pair_distances(*bad)
    for rows in (torch.tensor([5, 0]), torch.tensor([-1, 0])):
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            pair_distances(x, y, rows, j)


def test_opcheck() -> None:
    opcheck(torch.ops.ganfast.pair_distances.default, (random(5, 3), random(6, 3), torch.tensor([4, 0]), torch.tensor([5, 1])))
