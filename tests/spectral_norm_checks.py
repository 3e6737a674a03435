"""What holds for the spectral-norm ops on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, Weight, poisoned, start
from parity import assert_parity
from torch import Tensor

from ganfast.ops.spectral_norm import (
    matrix,
    power_iteration,
    power_iteration_reference,
    spectral_norm,
    spectral_norm_backward,
    spectral_norm_backward_reference,
    spectral_norm_reference,
    vectors,
)

EPS = 1e-12

Group = tuple[list[Tensor], Tensor, Tensor, list[int]]


def make(cases: Sequence[Weight], dtype: torch.dtype, generator: torch.Generator, wide: torch.dtype | None = None) -> Group:
    weights, dims = [case.make(dtype, generator) for case in cases], [case.dim for case in cases]
    return weights, *start(weights, dims, generator, wide), dims


def double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def on(tensors: Sequence[Tensor], device: str) -> list[Tensor]:
    return [tensor.to(device) for tensor in tensors]


def out_types(dtype: torch.dtype) -> tuple[torch.dtype | None, ...]:
    return (None, torch.bfloat16) if dtype == torch.float64 else (None, torch.float32, torch.bfloat16, torch.float16)


def as_computed(tensor: Tensor, wide: torch.dtype) -> Tensor:
    """A result in float64 of arithmetic in float32 has that one's rounding, and is judged by it."""
    return tensor.to(wide) if tensor.dtype == torch.float64 else tensor


def check_power_iteration(
    weights: list[Tensor], u: Tensor, v: Tensor, dims: list[int], n_iterations: int, device: str = "cpu"
) -> None:
    with poisoned():
        actual = power_iteration(on(weights, device), u.to(device), v.to(device), dims, n_iterations, EPS)
    torchs = power_iteration_reference(weights, u, v, dims, n_iterations, EPS)
    exact = power_iteration_reference(double(weights), u.double(), v.double(), dims, n_iterations, EPS)
    of_each = zip(*(by_weight(weights, dims, *results) for results in (actual, torchs, exact)), strict=True)
    for i, backends in enumerate(of_each):
        for name, outputs in zip(("u", "v", "sigma"), zip(*backends, strict=True), strict=True):
            assert_parity(*outputs, reduce_length=terms_of_sigma(weights[i], dims[i]), name=f"{name} {i}")


def by_weight(weights: list[Tensor], dims: list[int], u: Tensor, v: Tensor, sigmas: Tensor) -> list[tuple[Tensor, ...]]:
    pairs = vectors(weights, u.cpu(), v.cpu(), dims)
    return [(*pair, sigma) for pair, sigma in zip(pairs, sigmas.cpu().unbind(), strict=True)]


def terms_of_sigma(weight: Tensor, dim: int) -> int:
    """Those of the longest sum on the way to it."""
    return max(matrix(weight, dim).shape)


def check_spectral_norm(
    weights: list[Tensor],
    u: Tensor,
    v: Tensor,
    dims: list[int],
    n_iterations: int,
    dtype: torch.dtype | None,
    device: str = "cpu",
) -> None:
    arguments = on(weights, device), u.to(device), v.to(device), dims, n_iterations, EPS
    with poisoned():
        actual, *found = spectral_norm(*arguments, dtype)
    actual = on(actual, "cpu")
    torchs, *_ = spectral_norm_reference(weights, u, v, dims, n_iterations, EPS, dtype)
    exact, *_ = spectral_norm_reference(double(weights), u.double(), v.double(), dims, n_iterations, EPS, None)
    for i, (mine, pytorchs, truth) in enumerate(zip(actual, torchs, exact, strict=True)):
        assert mine.dtype == pytorchs.dtype == (dtype or weights[i].dtype)
        assert_laid_out_as(weights[i], mine, pytorchs)
        mine, pytorchs = as_computed(mine, u.dtype), as_computed(pytorchs, u.dtype)
        # the rounding of sigma is in every element, where it is not lost in that of a lower type
        terms = terms_of_sigma(weights[i], dims[i]) if mine.dtype == u.dtype else 1
        assert_parity(mine, pytorchs, truth, reduce_length=terms, name=f"normalised weight {i}, {n_iterations} iterations")
    if dtype is None:  # the same u, v and sigmas, bit for bit, as without the division
        for got, expected in zip(found, power_iteration(*arguments), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def check_backward(
    grads: list[Tensor], weights: list[Tensor], u: Tensor, v: Tensor, sigmas: Tensor, dims: list[int], device: str = "cpu"
) -> None:
    there = on(grads, device), on(weights, device), u.to(device), v.to(device), sigmas.to(device)
    with poisoned():
        actual = spectral_norm_backward(*there, dims, EPS)
    actual = on(actual, "cpu")
    torchs = spectral_norm_backward_reference(grads, weights, u, v, sigmas, dims, EPS)
    exact = spectral_norm_backward_reference(double(grads), double(weights), u.double(), v.double(), sigmas.double(), dims, EPS)
    for i, (mine, pytorchs, truth) in enumerate(zip(actual, torchs, exact, strict=True)):
        assert mine.dtype == pytorchs.dtype == weights[i].dtype
        assert_laid_out_as(weights[i], mine, pytorchs)
        mine, pytorchs = as_computed(mine, u.dtype), as_computed(pytorchs, u.dtype)
        # <G, W> is summed in float32 or wider, and rounded to a low type once
        terms = 1 + weights[i].numel() if mine.dtype == u.dtype else 1  # and that sum is taken off
        # a gradient along u v^T cancels, to nothing at all where W is one number
        minuend = (grads[i].double() / sigmas[i].double()).abs()
        scale = minuend.max().item() if minuend.isfinite().all() and minuend.numel() else None
        assert_parity(mine, pytorchs, truth, reduce_length=terms, scale=scale, name=f"gradient {i}")


def assert_laid_out_as(weight: Tensor, *results: Tensor) -> None:
    """As the shape function promises; a compiled graph reads its results with these strides."""
    promised = torch.empty_like(weight).stride()
    for result in results:
        for size, stride, expected in zip(result.shape, result.stride(), promised, strict=True):
            # the stride of a single step is never used
            assert stride == expected or size == 1 or result.numel() == 0, (result.stride(), promised)


def check(
    group: Group,
    grad_layouts: Sequence[str],
    generator: torch.Generator,
    device: str = "cpu",
    outs: Sequence[torch.dtype | None] = (),
) -> None:
    """All three ops, with normalised weights and gradients in the types ``outs``."""
    weights, u, v, dims = group
    for n_iterations in (0, 1, 3):
        check_power_iteration(weights, u, v, dims, n_iterations, device)
    *_, sigmas = power_iteration_reference(weights, u, v, dims, 0, EPS)
    for out in outs or out_types(weights[0].dtype):
        for n_iterations in (0, 1):
            check_spectral_norm(weights, u, v, dims, n_iterations, out, device)
        grads = [
            LAYOUTS[layout](torch.randn(w.shape, generator=generator).to(out or w.dtype))
            for w, layout in zip(weights, grad_layouts, strict=True)
        ]
        check_backward(grads, weights, u, v, sigmas, dims, device)


def check_any_mix_of_types(generator: torch.Generator, device: str = "cpu") -> None:
    cases = [Weight("linear", (5, 9)), Weight("conv2d", (4, 6, 3, 3), 1, "channels-last"), Weight("linear", (7, 3), 0, "sliced")]
    for dtype, wide in itertools.product(DTYPES, (torch.float32, torch.float64)):
        check(make(cases, dtype, generator, wide), ["contiguous", "reversed", "contiguous"], generator, device, DTYPES)


def check_sized(case: Weight, generator: torch.Generator, device: str = "cpu") -> None:
    """A weight of very small or large numbers; float16 has no place for it where it is not scaled."""
    group = weights, u, v, dims = make([case], torch.float32, generator)
    check(group, [case.layout], generator, device, (None, torch.bfloat16))
    # where the errors of PyTorch's float32 would excuse any other, these are held to the truth itself
    for n_iterations in (0, 1, 3):
        (mine,), *found = spectral_norm(on(weights, device), u.to(device), v.to(device), dims, n_iterations, EPS, None)
        (truth,), *exact = spectral_norm_reference(double(weights), u.double(), v.double(), dims, n_iterations, EPS, None)
        for got, expected in zip((mine, *found), (truth, *exact), strict=True):
            torch.testing.assert_close(got.double().cpu(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def check_nan_and_inf(case: Weight, value: float, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """NaN and Inf in a weight, a gradient or a sigma reach what PyTorch lets them reach, and no other weight of the group."""
    sound = Weight("linear", (5, 4))
    weights, u, v, dims = make([sound, case, sound], dtype, generator)
    *_, sigmas = power_iteration_reference(weights, u, v, dims, 0, EPS)
    grads = [torch.randn(w.shape, generator=generator).to(dtype) for w in weights]
    for i in (0, 1):
        broken = [w.clone() for w in weights]
        broken[i][2, 3] = value
        for n_iterations in (0, 1):
            check_spectral_norm(broken, u, v, dims, n_iterations, None, device)
        check_backward(grads, weights, u, v, sigmas.clone().index_fill_(0, torch.tensor(i), value), dims, device)
    for n_iterations in (0, 1, 3):
        check_power_iteration(broken, u, v, dims, n_iterations, device)
    check_backward(grads, broken, u, v, sigmas, dims, device)
    check_backward([grads[0], broken[1], grads[2]], weights, u, v, sigmas, dims, device)


# One argument that does not fit the others, and what all backends say of it where they say the same.
REFUSED: dict[str, tuple[str, Callable[[Any], Any], str | None]] = {
    "a u missing": ("u", lambda u: u[:5], None),
    "a v missing": ("v", lambda v: v[:24], None),
    "a short v": ("v", lambda v: v[:-1], None),
    "a long u": ("u", lambda u: torch.cat([u, u[5:]]), None),
    "a dim missing": ("dims", lambda dims: dims[:1], None),
    "no such dim": ("dims", lambda dims: [0, 4], None),
    "no such number of iterations": ("n_iterations", lambda n: -1, "expected n_iterations >= 0, got -1"),
    "a gradient missing": ("grads", lambda grads: grads[:1], None),
    "a gradient of another shape": ("grads", lambda grads: [grads[0], grads[1].transpose(0, 1).contiguous()], None),
    "a gradient too many": ("grads", lambda grads: [*grads, grads[0]], None),
    "a sigma missing": ("sigmas", lambda sigmas: sigmas[:1], None),
}


def check_refusal(name: str, device: str = "cpu") -> None:
    damaged, damage, said = REFUSED[name]
    weights = [torch.randn(5, 4, 3, 2, device=device) for _ in range(2)]
    u, v, sigmas = (torch.randn(size, device=device) for size in (9, 54, 2))
    matrices: dict[str, Any] = {"weights": weights, "u": u, "v": v}
    iterated = matrices | {"dims": [0, 1], "n_iterations": 1, "eps": EPS}
    for op, arguments in (
        (power_iteration, iterated),
        (spectral_norm, iterated | {"dtype": None}),
        (spectral_norm_backward, {"grads": weights} | matrices | {"sigmas": sigmas, "dims": [0, 1], "eps": EPS}),
    ):
        op(*arguments.values())
        if damaged in arguments:
            arguments[damaged] = damage(arguments[damaged])
            with pytest.raises((RuntimeError, ValueError, IndexError), match=said):
                op(*arguments.values())
