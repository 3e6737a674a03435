"""The C++ kernels against the reference on the page, by the one rule of tests/parity.py."""

from __future__ import annotations

import pytest
import torch
from batch_norm_checks import (
    EPS,
    FORMS,
    Form,
    check,
    check_any_mix_of_types,
    check_any_pair_of_layouts,
    check_backward,
    check_constant,
    check_far_from_zero,
    check_form,
    check_known,
    check_nan_and_inf,
    check_tracked,
    given,
    smooth,
)
from cases import BATCH_LAYOUTS, DTYPES, LAID_OUT_VOLUMES, VOLUMES, Batch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from ganfast.ops import library
from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_backward

pytestmark = pytest.mark.tier(2)
BOTH = ["contiguous", "channels-last"]


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [*VOLUMES, *LAID_OUT_VOLUMES], ids=str)
def test_parity(case: Batch, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(case, dtype, generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parity_of_tiles_that_are_larger_than_the_least(dtype: torch.dtype, generator: torch.Generator) -> None:
    check_form(Batch("images", (16, 96, 40, 41), "channels-last"), Form(slope=0.0), dtype, generator)


def test_statistics_that_are_known(generator: torch.Generator) -> None:
    check_known(generator)


def test_running_statistics(generator: torch.Generator) -> None:
    check_tracked(generator)


def test_gradients_come_in_any_layout(generator: torch.Generator) -> None:
    check_any_pair_of_layouts(generator)


def test_parity_of_any_mix_of_types(generator: torch.Generator) -> None:
    check_any_mix_of_types(generator)


@pytest.mark.parametrize("layout", BOTH)
def test_far_from_zero(layout: str, generator: torch.Generator) -> None:
    check_far_from_zero(layout, generator)


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_constant_channel(dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    check_constant(dtype, layout, generator)


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_where_they_are(value: float, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    check_nan_and_inf(value, dtype, layout, generator)


@pytest.mark.parametrize("layout", BOTH)
@pytest.mark.parametrize("eps", [1e-12, 0.1, 10.0])
def test_parity_of_any_eps(eps: float, layout: str, generator: torch.Generator) -> None:
    at = given(Batch("images", (4, 5, 9, 9), layout), Form(slope=0.2), torch.float32, generator, eps)
    check_backward(at, smooth(at, torch.randn(4, 5, 9, 9, generator=generator), layout))


@st.composite
def volumes(draw: st.DrawFn) -> Batch:
    rank = draw(st.integers(2, 5))
    shape = draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    if draw(st.booleans()):
        shape[draw(st.integers(0, rank - 1))] = draw(st.integers(7, 700))
    needs = {"channels-last": 3, "cropped": 3, "inner-transposed": 3}
    return Batch("fuzzed", tuple(shape), draw(st.sampled_from([x for x in BATCH_LAYOUTS if needs.get(x, 1) <= rank])))


@settings(max_examples=150, deadline=None)
@hypothesis_given(
    case=volumes(),
    dtype=st.sampled_from(DTYPES),
    groups=st.sampled_from([1, 2, 3, 4]),
    slope=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    tanh=st.booleans(),
    affine=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_parity_of_any_volume(
    case: Batch, dtype: torch.dtype, groups: int, slope: float, tanh: bool, affine: bool, seed: int
) -> None:
    check_form(case, Form(groups, slope, tanh, affine), dtype, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "transposed"])
@pytest.mark.parametrize(
    "shape", [(64, 64, 16, 16), (8, 3, 200, 200), (2, 5, 300, 100), (64, 600, 4, 4), (4000, 17, 2, 2)], ids=str
)
def test_the_same_bits_with_any_number_of_threads(shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    at = given(Batch("images", shape, layout), FORMS[1], torch.float32, generator)
    grad = torch.randn(shape, generator=generator)
    x, weight, bias, groups, *others = at.arguments()
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, mean, var = batch_norm_act(x, weight, bias, groups, *others)
            results.append([y, mean, var, *batch_norm_act_backward(grad, x, weight, bias, mean, var, *others)])
    finally:
        torch.set_num_threads(before)
    alone, *rest = results
    for other in rest:
        assert all(map(torch.equal, alone, other))


def test_statistics_of_another_volume_are_refused() -> None:
    x, statistics = torch.ones(4, 3, 2, 2), torch.ones(1, 3)
    with pytest.raises(RuntimeError, match=r"a gradient of x's shape \(4, 3, 2, 2\), got \(4, 3, 2, 1\)"):
        batch_norm_act_backward(x[..., :1], x, None, None, statistics, statistics, EPS, 1.0, False)
    for wrong in (torch.ones(1, 2), torch.ones(3), torch.ones(1, 3, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match=r"expected mean and var \(groups, 3\)"):
            batch_norm_act_backward(x, x, None, None, wrong, wrong, EPS, 1.0, False)
