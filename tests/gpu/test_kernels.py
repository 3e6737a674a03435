"""The kernels on a GPU, whichever GANFAST_CUDA chose, by the checks of every other backend."""

from __future__ import annotations

import math

import pytest
import torch
from cases import DCGAN64, DTYPES, EMPTY, LAID_OUT, RESNET32_CRITIC, SHAPES, SIZED, Weight
from spectral_norm_checks import (
    EPS,
    REFUSED,
    check,
    check_any_mix_of_types,
    check_nan_and_inf,
    check_refusal,
    check_sized,
    make,
)

from ganfast.ops.spectral_norm import spectral_norm, spectral_norm_backward

pytestmark = pytest.mark.tier(5)

CASES = [*SHAPES, *LAID_OUT, *EMPTY]
SMALL = [case for case in CASES if math.prod(case.shape) < 2**12]  # what compute-sanitizer gets through
LARGE = [case for case in CASES if case not in SMALL]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_spectral_norm_of_small_weights(case: Weight, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make([case], dtype, generator), [case.layout], generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_spectral_norm_of_large_weights(case: Weight, dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make([case], dtype, generator), [case.layout], generator, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("network", [RESNET32_CRITIC, DCGAN64], ids=["resnet32", "dcgan64"])
def test_spectral_norm_of_whole_networks(network: list[Weight], dtype: torch.dtype, generator: torch.Generator) -> None:
    check(make(network, dtype, generator), ["contiguous"] * len(network), generator, "cuda")


@pytest.mark.parametrize("case", SIZED, ids=str)
def test_weights_of_any_size(case: Weight, generator: torch.Generator) -> None:
    check_sized(case, generator, "cuda")


def test_any_mix_of_types(generator: torch.Generator) -> None:
    check_any_mix_of_types(generator, "cuda")


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name: str) -> None:
    check_refusal(name, "cuda")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_inf_flow_as_in_pytorch(value: float, generator: torch.Generator) -> None:
    check_nan_and_inf(Weight("conv2d", (4, 6, 3, 3), 1, "channels-last"), value, torch.float32, generator, "cuda")


def test_a_captured_iteration_follows_the_weights(generator: torch.Generator) -> None:
    """Captured once and replayed after the weights have changed: addresses are kept, and nothing waits for the host."""
    weights, u, v, dims = make(RESNET32_CRITIC, torch.float32, generator)
    weights, u, v = [weight.cuda() for weight in weights], u.cuda(), v.cuda()
    grads = [torch.randn_like(weight) for weight in weights]

    def step() -> list[torch.Tensor]:
        normalised, *found = spectral_norm(weights, u, v, dims, 1, EPS, None)
        return [*normalised, *found, *spectral_norm_backward(grads, weights, *found, dims, EPS)]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for weight in weights:
        weight.mul_(3).add_(0.1)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert torch.equal(found, expected)  # one order of sums, whatever launches it
