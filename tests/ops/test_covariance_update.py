"""Sums and products of rows against exact rational arithmetic, on the reference and on the C++ kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from matrices import EPS, random
from torch import Tensor
from torch.library import opcheck

from ganfast.ops.covariance_update import covariance_update

pytestmark = pytest.mark.usefixtures("backend")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sums(rows: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    size = rows.shape[1]
    found = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    assert covariance_update(rows, shift, *found) is None
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_sums(dtype: torch.dtype) -> None:
    rows = (random(23, 3) + 100).to(dtype)
    shift = rows[0].double() + 0.125
    total, products = sums(rows, shift)
    exact = [[Fraction(x) - Fraction(c) for x, c in zip(row, shift.tolist(), strict=True)] for row in rows.double().tolist()]
    # one rounding a term, of sums of numbers of one sign at most as large as this
    for i in range(3):
        size = sum(abs(row[i]) for row in exact)
        assert abs(Fraction(total[i].item()) - sum(row[i] for row in exact)) <= 24 * EPS * size
        for j in range(i, 3):
            size = sum(abs(row[i] * row[j]) for row in exact)
            assert abs(Fraction(products[i, j].item()) - sum(row[i] * row[j] for row in exact)) <= 24 * EPS * size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (5, 7), (100, 24), (3, 25), (511, 49), (512, 50), (513, 23), (1100, 130)], ids=str
)
def test_any_shape(count: int, size: int, dtype: torch.dtype) -> None:
    rows = random(count, size).to(dtype)
    shift = random(size, seed=1)
    centred = rows.double() - shift
    total, products = sums(rows, shift)
    torch.testing.assert_close(total, centred.sum(dim=0), rtol=0, atol=count * EPS * centred.abs().sum(0).max().item())
    expected = (centred.T @ centred).triu()
    torch.testing.assert_close(products.triu(), expected, rtol=0, atol=count * EPS * expected.max().item())


def test_it_adds_to_what_is_there_and_takes_any_layout() -> None:
    rows, shift = random(30, 40), random(40, seed=1)
    once, _ = sums(rows, shift), None
    for laid_out in (rows.T.contiguous().T, torch.stack([rows, rows], 2)[..., 1]):
        twice = sums(laid_out, shift)
        covariance_update(rows[:0], shift, *twice)
        covariance_update(rows, shift, *twice)
        for first, both in zip(once, twice, strict=True):
            torch.testing.assert_close(
                both.triu() if both.dim() == 2 else both, 2 * (first.triu() if first.dim() == 2 else first)
            )


def test_nan_stays_in_its_row_and_column() -> None:
    rows = random(9, 30)
    rows[4, 7] = torch.nan
    total, products = sums(rows, torch.zeros(30, dtype=torch.float64))
    assert total.isnan().nonzero().tolist() == [[7]]
    touched = products.triu().isnan().nonzero()
    assert len(touched) == 30 and (touched == 7).any(dim=1).all()


def test_what_does_not_fit_is_refused() -> None:
    good = (random(5, 3), torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(3, 3).double())
    for i, bad in ((0, random(5, 4)), (0, random(5)), (1, torch.zeros(3)), (2, torch.zeros(4).double()), (3, torch.zeros(3, 3))):
        with pytest.raises((ValueError, RuntimeError), match="expected"):
            covariance_update(*good[:i], bad, *good[i + 1 :])


def test_opcheck() -> None:
    opcheck(
        torch.ops.ganfast.covariance_update.default,
        (random(5, 3), torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(3, 3).double()),
    )


SCRIPT = """
import hashlib, torch
from ganfast.ops import library
from ganfast.ops.covariance_factor import covariance_factor
from ganfast.ops.covariance_update import covariance_update
from ganfast.ops.nuclear_norm import nuclear_norm
assert library.CPU == "cpp"
rows = torch.randn(700, 460, generator=torch.Generator().manual_seed(0))
sums, products = torch.zeros(460).double(), torch.zeros(460, 460).double()
covariance_update(rows, rows[0].double(), sums, products)
products = products.triu() + products.triu(1).T
factor = covariance_factor(products)[0]
norm = nuclear_norm(products)
assert (factor @ factor.T - products).abs().max() < 1e-12 * products.max()
assert abs(norm / products.trace() - 1) < 1e-13  # a positive matrix
print(*(hashlib.sha256(t.numpy().tobytes()).hexdigest() for t in (sums, products, factor, norm)))
"""


def run(**environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_number_of_threads_changes_no_bit(backend: str) -> None:
    if backend == "cpp":
        assert run(OMP_NUM_THREADS="1") == run(OMP_NUM_THREADS="2")


@pytest.mark.parametrize("tile", ["baseline", "avx2"])
def test_the_tiles_of_lesser_processors(tile: str, backend: str) -> None:
    if backend == "cpp":
        run(GANFAST_TILE=tile)
