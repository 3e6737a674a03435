"""What holds for the spectral-norm ops on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cases import LAYOUTS, Weight, poisoned, start
from parity import assert_parity
from torch import Tensor

from ganfast.ops.spectral_norm import (
    normalise_backward_reference,
    normalise_reference,
    power_iteration,
    power_iteration_reference,
    spectral_normalise,
    spectral_normalise_backward,
)

EPS = 1e-12
WIDE = (torch.float32, torch.float64)

Group = tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]


def make(cases: Sequence[Weight], dtype: torch.dtype, generator: torch.Generator) -> Group:
    weights, dims = [case.make(dtype, generator) for case in cases], [case.dim for case in cases]
    return weights, *start(weights, dims, generator), dims


def double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def on(tensors: Sequence[Tensor], device: str) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def out_types(dtype: torch.dtype) -> tuple[torch.dtype | None, ...]:
    return (None,) if dtype == torch.float64 else (None, torch.float32, torch.bfloat16, torch.float16)


def check_power_iteration(
    weights: list[Tensor], us: list[Tensor], vs: list[Tensor], dims: list[int], n_iterations: int, device: str = "cpu"
) -> None:
    with poisoned():
        actual = power_iteration(on(weights, device), on(us, device), on(vs, device), dims, n_iterations, EPS)
    torchs = power_iteration_reference(weights, us, vs, dims, n_iterations, EPS)
    exact = power_iteration_reference(double(weights), double(us), double(vs), dims, n_iterations, EPS)
    for i, (u, v) in enumerate(zip(us, vs, strict=True)):
        for name, outputs in zip(("u", "v", "sigma"), zip(actual, torchs, exact, strict=True), strict=True):
            terms = max(u.numel(), v.numel())
            assert_parity(*(output[i].cpu() for output in outputs), reduce_length=terms, name=f"{name} {i}")


def check_normalise(
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: Tensor,
    dims: list[int],
    dtype: torch.dtype | None,
    device: str = "cpu",
) -> None:
    with poisoned():
        actual = spectral_normalise(on(weights, device), on(us, device), on(vs, device), sigmas.to(device), dims, EPS, dtype)
    actual = on(actual, "cpu")
    torchs = normalise_reference(weights, us, vs, sigmas, dims, EPS, dtype)
    exact = normalise_reference(double(weights), double(us), double(vs), sigmas.double(), dims, EPS, None)
    for i, outputs in enumerate(zip(actual, torchs, exact, strict=True)):
        assert_parity(*outputs, name=f"normalised weight {i}")
        assert_laid_out_as(weights[i], actual[i], torchs[i])


def check_backward(
    grads: list[Tensor],
    weights: list[Tensor],
    us: list[Tensor],
    vs: list[Tensor],
    sigmas: Tensor,
    dims: list[int],
    device: str = "cpu",
) -> None:
    there = [on(tensors, device) for tensors in (grads, weights, us, vs)]
    with poisoned():
        actual = spectral_normalise_backward(*there, sigmas.to(device), dims, EPS)
    actual = on(actual, "cpu")
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


def check(group: Group, grad_layouts: Sequence[str], generator: torch.Generator, device: str = "cpu") -> None:
    """All three ops."""
    weights, us, vs, dims = group
    for n_iterations in (0, 1, 3):
        check_power_iteration(weights, us, vs, dims, n_iterations, device)
    *_, sigmas = power_iteration_reference(weights, us, vs, dims, 0, EPS)
    for out in out_types(weights[0].dtype):
        check_normalise(weights, us, vs, sigmas, dims, out, device)
        grads = [
            LAYOUTS[layout](torch.randn(w.shape, generator=generator).to(out or w.dtype))
            for w, layout in zip(weights, grad_layouts, strict=True)
        ]
        check_backward(grads, weights, us, vs, sigmas, dims, device)


def check_nan_and_inf(case: Weight, value: float, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """NaN and Inf in a weight, a gradient or a sigma reach what PyTorch lets them reach, and no other weight of the group."""
    sound = Weight("linear", (5, 4))
    weights, us, vs, dims = make([sound, case, sound], dtype, generator)
    *_, sigmas = power_iteration_reference(weights, us, vs, dims, 0, EPS)
    grads = [torch.randn(w.shape, generator=generator).to(dtype) for w in weights]
    broken = [weights[0], weights[1].clone(), weights[2]]
    broken[1][2, 3] = value
    for n_iterations in (0, 1, 3):
        check_power_iteration(broken, us, vs, dims, n_iterations, device)
    check_normalise(broken, us, vs, sigmas, dims, None, device)
    check_backward(grads, broken, us, vs, sigmas, dims, device)
    check_backward([grads[0], broken[1], grads[2]], weights, us, vs, sigmas, dims, device)
    for i in (0, 1):
        check_normalise(weights, us, vs, sigmas.clone().index_fill_(0, torch.tensor(i), value), dims, None, device)
        check_backward(grads, weights, us, vs, sigmas.clone().index_fill_(0, torch.tensor(i), value), dims, device)
