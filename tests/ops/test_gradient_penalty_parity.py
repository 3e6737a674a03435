"""The C++ kernels against the reference on the page, by the one rule of tests/parity.py."""

from __future__ import annotations

import pytest
import torch
from cases import BATCH_LAYOUTS, BATCHES, DTYPES, EMPTY_BATCHES, LAID_OUT_BATCHES, SIZED_BATCHES, Batch
from gradient_penalty_checks import (
    alphas,
    check,
    check_any_mix_of_types,
    check_any_pair_of_layouts,
    check_interpolate,
    check_nan_and_inf,
    check_slope_penalty,
    check_strided_alpha,
    check_zero_slopes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ganfast.ops import library
from ganfast.ops.gradient_penalty import interpolate, slope_penalty

pytestmark = pytest.mark.tier(2)


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*BATCHES, *LAID_OUT_BATCHES, *EMPTY_BATCHES], ids=str)
def test_parity(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(case, dtype, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SIZED_BATCHES, ids=str)
def test_parity_of_any_size(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(case, dtype, generator)


def test_real_and_fake_in_any_pair_of_layouts(generator: torch.Generator) -> None:
    check_any_pair_of_layouts(generator)


def test_parity_of_any_mix_of_types(generator: torch.Generator) -> None:
    check_any_mix_of_types(generator)


def test_alpha_in_any_stride(generator: torch.Generator) -> None:
    check_strided_alpha(generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slope_of_zero(dtype: torch.dtype, generator: torch.Generator) -> None:
    check_zero_slopes(dtype, generator)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("case", [Batch("odd", (6, 9)), Batch("images", (3, 3, 32, 32)), Batch("large", (3, 40000))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_flow_as_in_pytorch(case: Batch, value: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    check_nan_and_inf(case, value, dtype, generator)


def test_no_samples_mix_to_none() -> None:
    check_interpolate(torch.empty(0, 3, 2), torch.empty(0, 3, 2), torch.empty(0))


@st.composite
def batch_cases(draw: st.DrawFn) -> Batch:
    rank = draw(st.integers(1, 5))
    shape = draw(st.lists(st.integers(0, 6), min_size=rank, max_size=rank))
    shape[0] = max(1, shape[0])
    if draw(st.booleans()):
        shape[draw(st.integers(0, rank - 1))] = draw(st.integers(7, 20000 if rank < 3 else 700))
    needs = {"transposed": 2, "reversed": 2, "expanded": 2, "channels-last": 3, "cropped": 3, "inner-transposed": 3}
    return Batch("fuzzed", tuple(shape), draw(st.sampled_from([x for x in BATCH_LAYOUTS if needs.get(x, 1) <= rank])))


@settings(max_examples=150, deadline=None)
@given(
    case=batch_cases(),
    dtype=st.sampled_from(DTYPES),
    target=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    weight=st.sampled_from([0.0, 0.5, 10.0]),
    one_sided=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_parity_of_any_batch(case: Batch, dtype: torch.dtype, target: float, weight: float, one_sided: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    real, fake = case.make(dtype, generator), case.make(dtype, generator)
    check_interpolate(real, fake, alphas(len(real), generator))
    check_slope_penalty(real, target, weight, one_sided)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (3, 5, 100, 77), (1, 8, 256, 256), (20000, 1, 2, 1)], ids=str)
def test_the_same_bits_with_any_number_of_threads(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    case = Batch("images", shape, layout)
    real, fake = case.make(torch.float32, generator), case.make(torch.float32, generator)
    alpha, results = alphas(len(real), generator), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            mixtures = [interpolate(real, fake, alpha, stacked) for stacked in (False, True)]
            results.append([*mixtures, *slope_penalty(real, 1.0, 10.0, False)])
    finally:
        torch.set_num_threads(before)
    alone, *others = results
    for other in others:
        assert all(map(torch.equal, alone, other))
