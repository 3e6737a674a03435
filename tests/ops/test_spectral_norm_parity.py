"""The C++ kernels against the reference on the page, by the one rule of tests/parity.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cases import DCGAN64, DTYPES, EMPTY, GLIBC, LAID_OUT, LAYOUTS, POISON, RESNET32_CRITIC, SHAPES, Weight, poisoned, start
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import assert_parity
from torch import Tensor

from ganfast.ops import library
from ganfast.ops.spectral_norm import (
    normalise_backward_reference,
    normalise_reference,
    power_iteration,
    power_iteration_reference,
    spectral_normalise,
    spectral_normalise_backward,
)

pytestmark = pytest.mark.tier(2)
EPS = 1e-12
WIDE = (torch.float32, torch.float64)
CASES = [*SHAPES, *LAID_OUT, *EMPTY]


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run; the seed is shown where a test fails."""
    fresh = torch.Generator()
    print("seed", fresh.seed())
    return fresh


Group = tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]


def make(cases: Sequence[Weight], dtype: torch.dtype, generator: torch.Generator) -> Group:
    weights, dims = [case.make(dtype, generator) for case in cases], [case.dim for case in cases]
    return weights, *start(weights, dims, generator), dims


def double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def out_types(dtype: torch.dtype) -> tuple[torch.dtype | None, ...]:
    return (None,) if dtype == torch.float64 else (None, torch.float32, torch.bfloat16, torch.float16)


def check_power_iteration(weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dims: list[int], n_iterations: int) -> None:
    with poisoned():
        actual = power_iteration(weights, us, vs, dims, n_iterations, EPS)
    torchs = power_iteration_reference(weights, us, vs, dims, n_iterations, EPS)
    exact = power_iteration_reference(double(weights), double(us), double(vs), dims, n_iterations, EPS)
    for i, (u, v) in enumerate(zip(us, vs, strict=True)):
        for name, outputs in zip(("u", "v", "sigma"), zip(actual, torchs, exact, strict=True), strict=True):
            terms = max(u.numel(), v.numel())
            assert_parity(*(output[i] for output in outputs), reduce_length=terms, name=f"{name} {i}")


def check_normalise(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], sigmas: Tensor, dims: list[int], dtype: torch.dtype | None
) -> None:
    with poisoned():
        actual = spectral_normalise(weights, us, vs, sigmas, dims, EPS, dtype)
    torchs = normalise_reference(weights, us, vs, sigmas, dims, EPS, dtype)
    exact = normalise_reference(double(weights), double(us), double(vs), sigmas.double(), dims, EPS, None)
    for i, outputs in enumerate(zip(actual, torchs, exact, strict=True)):
        assert_parity(*outputs, name=f"normalised weight {i}")
        assert_laid_out_as(weights[i], actual[i], torchs[i])


def check_backward(
    grads: list[Tensor], weights: list[Tensor], us: list[Tensor], vs: list[Tensor], sigmas: Tensor, dims: list[int]
) -> None:
    with poisoned():
        actual = spectral_normalise_backward(grads, weights, us, vs, sigmas, dims, EPS)
    torchs = normalise_backward_reference(grads, weights, us, vs, sigmas, dims, EPS)
    exact = normalise_backward_reference(double(grads), double(weights), double(us), double(vs), sigmas.double(), dims, EPS)
    for i, outputs in enumerate(zip(actual, torchs, exact, strict=True)):
        # <G, W> is summed in float32 or wider, and rounded to a low type once
        terms = weights[i].numel() if weights[i].dtype in WIDE else 1
        # a gradient along u v^T cancels, to nothing at all where W is one number
        minuend = (grads[i].double() / sigmas[i].double()).abs()
        scale = minuend.max().item() if minuend.isfinite().all() and minuend.numel() else None
        assert_parity(*outputs, reduce_length=terms, scale=scale, name=f"gradient {i}")
        assert_laid_out_as(weights[i], actual[i], torchs[i])


def assert_laid_out_as(weight: Tensor, *results: Tensor) -> None:
    """As the shape function promises; a compiled graph reads its results with these strides."""
    promised = torch.empty_like(weight).stride()
    for result in results:
        for size, stride, expected in zip(result.shape, result.stride(), promised, strict=True):
            # the stride of a single step is never used
            assert stride == expected or size == 1 or result.numel() == 0, (result.stride(), promised)


def check(group: Group, grad_layouts: Sequence[str], generator: torch.Generator) -> None:
    """All three ops."""
    weights, us, vs, dims = group
    for n_iterations in (0, 1, 3):
        check_power_iteration(weights, us, vs, dims, n_iterations)
    *_, sigmas = power_iteration_reference(weights, us, vs, dims, 0, EPS)
    for out in out_types(weights[0].dtype):
        check_normalise(weights, us, vs, sigmas, dims, out)
        grads = [
            LAYOUTS[layout](torch.randn(w.shape, generator=generator).to(out or w.dtype))
            for w, layout in zip(weights, grad_layouts, strict=True)
        ]
        check_backward(grads, weights, us, vs, sigmas, dims)


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
    weights, us, vs, dims = make(network, torch.float32, generator)
    check_power_iteration(weights, us, vs, dims, 1)
    *_, sigmas = power_iteration_reference(weights, us, vs, dims, 0, EPS)
    check_normalise(weights, us, vs, sigmas, dims, torch.bfloat16)
    check_backward([torch.randn(w.shape, generator=generator) for w in weights], weights, us, vs, sigmas, dims)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("case", [Weight("linear", (6, 9)), Weight("conv2d", (4, 6, 3, 3), 1, "channels-last")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_inf_flow_as_in_pytorch(case: Weight, value: float, dtype: torch.dtype, generator: torch.Generator) -> None:
    sound = Weight("linear", (5, 4))
    weights, us, vs, dims = make([sound, case, sound], dtype, generator)
    *_, sigmas = power_iteration_reference(weights, us, vs, dims, 0, EPS)
    grads = [torch.randn(w.shape, generator=generator).to(dtype) for w in weights]
    broken = [weights[0], weights[1].clone(), weights[2]]
    broken[1][2, 3] = value
    for n_iterations in (0, 1, 3):
        check_power_iteration(broken, us, vs, dims, n_iterations)
    check_normalise(broken, us, vs, sigmas, dims, None)
    check_backward(grads, broken, us, vs, sigmas, dims)
    check_backward([grads[0], broken[1], grads[2]], weights, us, vs, sigmas, dims)
    for i in (0, 1):
        check_normalise(weights, us, vs, sigmas.clone().index_fill_(0, torch.tensor(i), value), dims, None)
        check_backward(grads, weights, us, vs, sigmas.clone().index_fill_(0, torch.tensor(i), value), dims)


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
    weights, us, vs, dims = make(cases, torch.float32, generator)
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            new_us, new_vs, sigmas = power_iteration(weights, us, vs, dims, 2, EPS)
            normalised = spectral_normalise(weights, new_us, new_vs, sigmas, dims, EPS, None)
            gradients = spectral_normalise_backward(grads, weights, new_us, new_vs, sigmas, dims, EPS)
            results.append([*new_us, *new_vs, sigmas, *normalised, *gradients])
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
