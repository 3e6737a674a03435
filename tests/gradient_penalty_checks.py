"""What holds for the gradient-penalty ops on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BATCH_LAYOUTS, DTYPES, Batch, poisoned
from parity import assert_parity
from torch import Tensor

from ganfast.ops.gradient_penalty import interpolate, interpolate_reference, slope_penalty, slope_penalty_reference

CHARGES = [(1.0, 10.0, False), (1.0, 10.0, True), (0.0, 0.5, False)]  # gradient penalty, one-sided, R1


def alphas(n: int, generator: torch.Generator) -> Tensor:
    """Both ends, both sides of the middle, and the middle among them."""
    drawn = torch.rand(n, generator=generator)
    special = torch.tensor([0.0, 0.5, 1.0])
    drawn[: min(n, 3)] = special[torch.randperm(3, generator=generator)][:n]
    return drawn


def check_interpolate(real: Tensor, fake: Tensor, alpha: Tensor, device: str = "cpu") -> None:
    n = real.shape[0]
    for stacked in (False, True):
        with poisoned():
            actual = interpolate(real.to(device), fake.to(device), alpha.to(device), stacked).cpu()
        torchs = interpolate_reference(real, fake, alpha, stacked)
        exact = interpolate_reference(real.double(), fake.double(), alpha.double(), stacked)
        assert_strides(actual, torchs)
        if stacked:
            torch.testing.assert_close(actual[: 2 * n], torchs[: 2 * n], rtol=0, atol=0, equal_nan=True)
            actual, torchs, exact = actual[2 * n :], torchs[2 * n :], exact[2 * n :]
        # where real and fake cancel, the rounding is that of the larger
        assert_parity(actual, torchs, exact, reduce_length=2, scale=largest(real, fake), name=f"mixture, stacked {stacked}")


def largest(*tensors: Tensor) -> float | None:
    """Of the finite elements."""
    sizes = torch.cat([tensor.double().abs().flatten() for tensor in tensors])
    sizes = sizes[sizes.isfinite()]
    return sizes.max().item() if len(sizes) else None


def check_slope_penalty(g: Tensor, target: float, weight: float, one_sided: bool, device: str = "cpu") -> None:
    with poisoned():
        penalty, v = (found.cpu() for found in slope_penalty(g.to(device), target, weight, one_sided))
    torchs, torchs_v = slope_penalty_reference(g, target, weight, one_sided)
    exact, exact_v = slope_penalty_reference(g.double(), target, weight, one_sided)
    assert_strides(v, torchs_v)
    scale = scale_v = None
    if g.dtype == torch.float64:  # the rounding of the lengths, which n - target may cancel to; a lower type's hides it
        lengths = g.flatten(1).norm(dim=1) if g.dim() > 1 else g.abs()
        scale = (weight / len(g) * (lengths + target).square().sum()).item()
        scale_v = (2 * weight / len(g) * (lengths + target)).max().item()  # no element of g is longer than its sample
    terms = len(g) + g.numel() if g.dtype == torch.float64 else 1  # all sums are float64's: over samples, over their elements
    assert_parity(penalty, torchs, exact, reduce_length=terms, scale=finite(scale), name="penalty")
    assert_parity(v, torchs_v, exact_v, reduce_length=terms, scale=finite(scale_v), name="v")


def finite(scale: float | None) -> float | None:
    return scale if scale is not None and scale < float("inf") else None


def assert_strides(actual: Tensor, promised: Tensor) -> None:
    """Those of the shape function; a compiled graph reads its results with them."""
    for size, stride, expected in zip(actual.shape, actual.stride(), promised.stride(), strict=True):
        # the stride of a single step is never used
        assert stride == expected or size == 1 or actual.numel() == 0, (actual.stride(), promised.stride())


def check(case: Batch, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """Both ops on a batch like this one."""
    real, fake = case.make(dtype, generator), case.make(dtype, generator)
    check_interpolate(real, fake, alphas(len(real), generator), device)
    for charge in CHARGES:
        check_slope_penalty(real, *charge, device)


def check_any_pair_of_layouts(generator: torch.Generator, device: str = "cpu") -> None:
    for real, fake in itertools.product(BATCH_LAYOUTS, repeat=2):
        cases = Batch("images", (4, 3, 2, 5), real), Batch("images", (4, 3, 2, 5), fake)
        check_interpolate(*(case.make(torch.float32, generator) for case in cases), alphas(4, generator), device)


def check_any_mix_of_types(generator: torch.Generator, device: str = "cpu") -> None:
    case = Batch("images", (5, 3, 4, 7))
    for real, fake, alpha in itertools.product(DTYPES, DTYPES, DTYPES):
        # an alpha that float32 has as well: float64's own is rounded before it is used, unless it is mixed in float64
        chosen = alphas(5, generator).to(alpha)
        check_interpolate(case.make(real, generator), case.make(fake, generator), chosen, device)


def check_strided_alpha(generator: torch.Generator, device: str = "cpu") -> None:
    case, alpha = Batch("odd", (6, 35)), alphas(6, generator)
    for strided in (torch.stack([alpha, -alpha], dim=1)[:, 0], alpha[:1].expand(6)):
        check_interpolate(case.make(torch.float32, generator), case.make(torch.float32, generator), strided, device)


def check_zero_slopes(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """A sample that is nothing at all, among others: its v is zero, and exactly that."""
    g = Batch("images", (5, 3, 4, 7)).make(dtype, generator)
    g[2] = 0
    for charge in CHARGES:
        check_slope_penalty(g, *charge, device)
        assert not slope_penalty(g.to(device), *charge)[1][2].any()


def check_nan_and_inf(case: Batch, value: float, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """They reach P and the v of their own sample, and of a mixture their own element."""
    g, other = case.make(dtype, generator), case.make(dtype, generator)
    sample = len(g) // 2
    g.select(0, sample).view(-1)[-1:] = value
    for charge in CHARGES:
        check_slope_penalty(g, *charge, device)
        penalty, v = slope_penalty(g.to(device), *charge)
        assert not penalty.isfinite()
        broken = ~v.cpu().isfinite().flatten(1).all(1)
        assert broken.nonzero().flatten().tolist() == [sample]
    for alpha in (0.0, 0.25, 0.75, 1.0):
        check_interpolate(g, other, torch.full((len(g),), alpha), device)
        check_interpolate(other, g, torch.full((len(g),), alpha), device)


# Arguments that do not fit, and what all backends say of them.
REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "another shape": (
        interpolate,
        (torch.ones(3, 2), torch.ones(3, 3), torch.ones(3), False),
        r"expected real and fake of one shape \(N, ...\) and alpha \(N,\), got \(3, 2\), \(3, 3\), \(3,\)",
    ),
    "another rank": (interpolate, (torch.ones(3, 2), torch.ones(3, 2, 1), torch.ones(3), True), "one shape"),
    "an alpha missing": (interpolate, (torch.ones(3, 2), torch.ones(3, 2), torch.ones(2), False), r"\(3, 2\), \(2,\)"),
    "alpha as a column": (interpolate, (torch.ones(3, 2), torch.ones(3, 2), torch.ones(3, 1), False), r"\(3, 2\), \(3, 1\)"),
    "one number to mix": (interpolate, (torch.ones(()), torch.ones(()), torch.ones(()), False), r"got \(\), \(\), \(\)"),
    "no sample": (slope_penalty, (torch.ones(0, 3), 1.0, 10.0, False), r"expected gradients .* N >= 1, got \(0, 3\)"),
    "one number to charge": (slope_penalty, (torch.ones(()), 1.0, 10.0, False), r"expected gradients .* N >= 1, got \(\)"),
}


def check_refusal(name: str, device: str = "cpu") -> None:
    op, arguments, said = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError), match=said):
        op(*(x.to(device) if isinstance(x, Tensor) else x for x in arguments))
