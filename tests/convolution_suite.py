"""The Triton kernels of convolutions against the page's reference, by the one rule of tests/parity.py: in a process of its own,
where tests/elsewhere.py runs them interpreted, and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from cases import BATCH_LAYOUTS, poisoned
from convolution_checks import CASES, REFUSED, Case
from parity import assert_parity
from torch import Tensor

from ganfast.ops import convolution as page

OPS = ("convolve", "transposed_convolve", "convolution_weight_gradient")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Product = tuple[str, tuple[Any, ...], int]

# Small enough to be interpreted: a stride larger than the kernel, one pixel, no channels to fill a tile, few channels on either
# side, sums over more channels than a step takes, more than one tile.
INTERPRETED = [case for case in CASES if case.n * case.a * case.b * case.h**2 <= 30_000]


def products(case: Case, dtype: torch.dtype) -> Iterator[Product]:
    """Name, arguments and the length of the sums."""
    big, small, weight = case.make(dtype)
    steps = case.stride, case.padding
    yield "convolve", (big, weight, torch.randn(case.a), *steps), case.kernel**2 * case.b
    yield "transposed_convolve", (small, weight, torch.randn(case.b), *steps, *case.extents), case.kernel**2 * case.a
    yield "convolution_weight_gradient", (small, big, case.kernel, case.kernel, *steps), case.n * case.h**2


def check(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    for product in products(case, dtype):
        check_product(*product, device)


def check_product(name: str, arguments: tuple[Any, ...], length: int, device: str = "cpu") -> None:
    reference = getattr(page, f"{name}_reference")
    with poisoned():
        found = call(name, arguments, device)
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = reference(*(a.double() if isinstance(a, Tensor) else a for a in arguments))
    assert_parity(found.cpu(), reference(*arguments), exact, reduce_length=length, name=name)


def call(name: str, arguments: tuple[Any, ...], device: str) -> Tensor:
    found: Tensor = getattr(page, name)(*(a.to(device) if isinstance(a, Tensor) else a for a in arguments))
    return found


def check_kernels_and_maps_that_are_no_squares(device: str = "cpu") -> None:
    for kernel, stride, padding, size in (((5, 2), 2, 1, (6, 5)), ((1, 3), 7, 3, (3, 8)), ((4, 3), 1, 2, (2, 1))):
        big, weight = torch.randn(3, 5, *size), torch.randn(8, 5, *kernel)
        arguments = big, weight, None, stride, padding
        check_product("convolve", arguments, weight[0].numel(), device)
        small = page.convolve_reference(*arguments)
        check_product("convolution_weight_gradient", (small, big, *kernel, stride, padding), small[:, 0].numel(), device)
        check_product("transposed_convolve", (small, weight, None, stride, padding, *size), weight[:, 0].numel(), device)


def check_factors_lie_anyhow(device: str = "cpu") -> None:
    for name, arguments, _ in products(CASES[3], torch.float32):
        expected = call(name, arguments, device)
        for layout in ("contiguous", "sliced", "offset"):
            laid_out = tuple(BATCH_LAYOUTS[layout](a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in arguments)
            assert torch.equal(call(name, laid_out, device), expected), (name, layout)


def check_nan_stays_where_it_reaches(device: str = "cpu") -> None:
    for case in (CASES[0], CASES[3]):
        for name, arguments, _ in products(case, torch.float32):
            arguments[0][1, 1, 2, 3] = torch.nan
            reference = getattr(page, f"{name}_reference")
            found, expected = call(name, arguments, device).cpu(), reference(*arguments)
            assert torch.equal(found.isnan(), expected.isnan()) and found.isnan().any() and not found.isnan().all(), name


def check_refusal(name: str, arguments: tuple[Any, ...], device: str = "cpu") -> None:
    op = "convolution_weight_gradient" if name == "weight" else name
    with pytest.raises((RuntimeError, ValueError)):
        call(op, arguments, device)


def check_nothing_is_refused(kernels: Any) -> None:
    """By the kernels: the op leaves to PyTorch what has no values."""
    with pytest.raises(ValueError, match="at least one value"):
        kernels.convolve(torch.ones(0, 4, 8, 8), torch.ones(6, 4, 4, 4), None, 2, 1)
    with pytest.raises(ValueError, match=r"float16, got torch\.float64"):
        kernels.convolve(torch.ones(1, 4, 8, 8), torch.ones(6, 4, 4, 4).double(), None, 2, 1)


def suite(backend: str) -> dict[str, Callable[[], None]]:
    from kernel_resources import triton_module

    cases: dict[str, Callable[[], None]] = {}
    for i, case in enumerate(INTERPRETED):
        cases[str(case)] = partial(check, case, DTYPES[i % len(DTYPES)])
    cases["no squares"] = check_kernels_and_maps_that_are_no_squares
    cases["any layout"] = check_factors_lie_anyhow
    cases["nan"] = check_nan_stays_where_it_reaches
    for i, (name, arguments) in enumerate(REFUSED):
        cases[f"refused {i}, {name}"] = partial(check_refusal, name, arguments)
    cases["nothing"] = lambda: check_nothing_is_refused(triton_module("convolution"))
    return cases
