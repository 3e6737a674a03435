"""The C++ kernels against the reference on the page, by the one rule of tests/parity.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import DCGAN64, DTYPES, EMPTY, GLIBC, LAID_OUT, LAYOUTS, POISON, RESNET32_CRITIC, SHAPES, SIZED, Weight, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_norm_checks import (
    EPS,
    check,
    check_any_mix_of_types,
    check_backward,
    check_nan_and_inf,
    check_power_iteration,
    check_sized,
    check_spectral_norm,
    make,
)

from ganfast.ops import library
from ganfast.ops.spectral_norm import power_iteration_reference, spectral_norm, spectral_norm_backward

pytestmark = pytest.mark.tier(2)
CASES = [*SHAPES, *LAID_OUT, *EMPTY]


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Weight, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make([case], dtype, generator), [case.layout], generator)


@pytest.mark.parametrize("weight_layout", ["contiguous", "channels-last", "sliced"])
@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_come_in_any_layout(weight_layout: str, dim: int, generator: torch.Generator) -> None:
    cases = [Weight("conv2d", (10, 7, 3, 5), dim, weight_layout)] * len(LAYOUTS)
    check(make(cases, torch.float32, generator), list(LAYOUTS), generator)


@pytest.mark.parametrize("network", [RESNET32_CRITIC, DCGAN64], ids=["resnet32", "dcgan64"])
def test_parity_of_whole_networks(network: list[Weight], generator: torch.Generator) -> None:
    weights, u, v, dims = make(network, torch.float32, generator)
    check_power_iteration(weights, u, v, dims, 1)
    for n_iterations in (0, 1):
        check_spectral_norm(weights, u, v, dims, n_iterations, torch.bfloat16)
    *_, sigmas = power_iteration_reference(weights, u, v, dims, 0, EPS)
    check_backward([torch.randn(w.shape, generator=generator) for w in weights], weights, u, v, sigmas, dims)


@pytest.mark.parametrize("case", SIZED, ids=str)
def test_parity_of_any_size(case: Weight, generator: torch.Generator) -> None:
    check_sized(case, generator)


def test_parity_of_any_mix_of_types(generator: torch.Generator) -> None:
    check_any_mix_of_types(generator)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("case", [Weight("linear", (6, 9)), Weight("conv2d", (4, 6, 3, 3), 1, "channels-last")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_inf_flow_as_in_pytorch(case: Weight, value: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    check_nan_and_inf(case, value, dtype, generator)


@st.composite
def weight_cases(draw: st.DrawFn) -> Weight:
    rank = draw(st.integers(2, 5))
    shape = draw(st.lists(st.integers(0, 6), min_size=rank, max_size=rank))
    layouts = [layout for layout in LAYOUTS if rank > 2 or layout not in ("channels-last", "cropped")]
    layout = draw(st.sampled_from(layouts))
    if draw(st.booleans()):
        # not along the dim that is expanded: equal terms are all rounded the same way, and the sum of many is biased in any order
        shape[0 if layout == "expanded" else draw(st.integers(0, 1))] = draw(st.integers(7, 1300))
    return Weight("fuzzed", tuple(shape), draw(st.integers(0, rank - 1)), layout)


@settings(max_examples=80, deadline=None)
@given(
    cases=st.lists(weight_cases(), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    grad_layout=st.sampled_from(["contiguous", "transposed", "offset", "sliced", "expanded"]),
    seed=st.integers(0, 2**32),
)
def test_parity_of_any_group(cases: list[Weight], dtype: torch.dtype, grad_layout: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # the same holds for gradients
    grad_layouts = ["contiguous" if grad_layout == "expanded" and case.shape[1] > 6 else grad_layout for case in cases]
    check(make(cases, dtype, generator), grad_layouts, generator)


def test_the_same_bits_with_any_number_of_threads(generator: torch.Generator) -> None:
    cases = [
        *RESNET32_CRITIC,
        Weight("row", (1, 2**20)),
        Weight("column", (2**18, 3)),
        Weight("conv2d", (64, 300, 4, 4), 1, "reversed"),
    ]
    weights, u, v, dims = make(cases, torch.float32, generator)
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            normalised, *found = spectral_norm(weights, u, v, dims, 2, EPS, None)
            gradients = spectral_norm_backward(grads, weights, *found, dims, EPS)
            results.append([*found, *normalised, *gradients])
    finally:
        torch.set_num_threads(before)
    alone, *others = results
    for other in others:
        assert all(map(torch.equal, alone, other))


def test_the_poison_reaches_what_the_kernels_allocate() -> None:
    with poisoned():
        assert torch.empty(1000).isnan().all()
        if GLIBC:
            assert (np.empty(2**16, np.uint8) == POISON).all()
    assert not torch.are_deterministic_algorithms_enabled()
