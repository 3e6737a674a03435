"""The C++ kernels of a weight's gradient that normalise what they read: to the bit that of what batch norm's op makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiles
import torch
from torch import Tensor

from ganfast.ops import conv_norm as page
from ganfast.ops import convolution, library
from ganfast.ops.batch_norm import batch_norm_act, normalise_act

pytestmark = pytest.mark.tier(2)
DTYPES = [torch.float32, torch.bfloat16]
EPS = 1e-5
KERNELS = ("tiled", "winograd")

# x (N, C, h, w), output's channels, kernel, stride, padding: layers of DCGAN's generator with few tiles and with many, large ones
# too; an image's channels, with words of two pixels and without; 3 x 3; a number of tiles and of pixels that is odd; one pixel;
# more channels than a block of batch norm has; more tiles than are turned at a time.
CASES = [
    ((2, 24, 4, 4), 18, 4, 2, 1),
    ((7, 10, 16, 16), 20, 4, 2, 1),
    ((3, 18, 6, 2), 33, 4, 2, 1),
    ((13, 20, 8, 8), 3, 4, 2, 1),
    ((3, 64, 5, 5), 3, 4, 2, 1),
    ((9, 12, 12, 12), 20, 3, 1, 1),
    ((4, 7, 5, 3), 20, 2, 3, 0),
    ((5, 70, 1, 1), 9, 4, 1, 0),
    ((1, 530, 6, 6), 4, 4, 2, 1),
    ((40, 64, 32, 32), 4, 4, 2, 1),
]


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


def given(case: tuple[Any, ...], dtype: torch.dtype, affine: bool = True) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """grad, x, and what the op takes after them up to the slope."""
    shape, outputs, kernel, stride, padding = case
    x = (2 * torch.randn(shape) + 1).to(dtype).to(memory_format=torch.channels_last)
    extents = ((size - 1) * stride - 2 * padding + kernel for size in shape[2:])
    grad = torch.randn(shape[0], outputs, *extents).to(dtype)
    gamma, beta = (torch.randn(shape[1]) if affine else None for _ in range(2))
    _, mean, var = batch_norm_act(x, None, None, 1, EPS, 1.0, False)
    return grad, x, (mean, var, gamma, beta, EPS)


def kernels(case: tuple[Any, ...]) -> Iterator[tuple[Callable[..., Tensor], Callable[..., Tensor]]]:
    """Those that apply, and the ones of the same algorithm that take a for x."""
    for kernel in KERNELS:
        if kernel == "tiled" or (case[2:] in ((4, 2, 1), (3, 1, 1)) and not any(size % 2 for size in case[0][2:])):
            yield tuple(getattr(torch.ops.ganfast, f"{kernel}_{name}_weight_gradient") for name in ("conv_norm", "convolution"))


def check(case: tuple[Any, ...], dtype: torch.dtype, slope: float, affine: bool) -> None:
    grad, x, norm = given(case, dtype, affine)
    mean, var, *rest = norm
    a = normalise_act(x, *rest[:2], mean, var, EPS, slope, False)
    assert not torch.equal(a, x)
    _, _, kernel, *steps = case
    for ours, plain in kernels(case):
        for into in (None, torch.float32):
            found = ours(grad, x, *norm, slope, True, kernel, kernel, *steps, into)
            assert torch.equal(found, plain(a, grad, kernel, kernel, *steps, into)), (ours, into)
            assert found.dtype == (into or dtype) and found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("slope", "affine"), [(0.0, True), (0.2, False), (1.0, True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_gradient_of_what_batch_norm_makes(
    case: tuple[Any, ...], dtype: torch.dtype, slope: float, affine: bool
) -> None:
    check(case, dtype, slope, affine)


@pytest.mark.parametrize("tile", tiles.TILES)
def test_on_lesser_processors(tile: str) -> None:
    tiles.run(tile, "import test_conv_norm_parity as t; [t.check(c, d, 0.2, True) for c in t.CASES for d in t.DTYPES]")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        for case in CASES:
            grad, x, norm = given(case, dtype)
            _, _, kernel, *steps = case
            for ours, _ in kernels(case):
                results = []
                for count in (1, 2, 5):
                    torch.set_num_threads(count)
                    results.append(ours(grad, x, *norm, 0.0, True, kernel, kernel, *steps))
                assert all(torch.equal(results[0], other) for other in results[1:]), (ours, case)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_channel(dtype: torch.dtype) -> None:
    for case in CASES:
        grad, x, norm = given(case, dtype)
        x[-1, 4, -1, 0] = torch.nan
        norm = *batch_norm_act(x, None, None, 1, EPS, 1.0, False)[1:], *norm[2:]
        _, _, kernel, *steps = case
        for ours, _ in kernels(case):
            bad = ours(grad, x, *norm, 0.0, True, kernel, kernel, *steps).isnan()
            assert bad[4].all() and bad.sum() == bad[4].sum(), (ours, case)


def several_groups(norm: tuple[Any, ...]) -> tuple[Any, ...]:
    return *(torch.cat([t, t + 1]) for t in norm[:2]), *norm[2:]


def test_what_is_not_read_once_is_left_to_passes() -> None:
    grad, x, norm = given(CASES[0], torch.float32)
    of_convolution = torch.randn(2, 18, 2, 2)
    for grads, known, transposed in ((of_convolution, norm, False), (grad, several_groups(norm), True)):
        mean, var, gamma, beta, _ = known
        a = normalise_act(x, gamma, beta, mean, var, EPS, 0.2, False)
        expected = convolution.by_weight(grads, a, transposed, 4, 4, 2, 1)
        assert torch.equal(page.conv_norm_weight_gradient(grads, x, *known, 0.2, transposed, 4, 4, 2, 1), expected)


def test_refused() -> None:
    grad, x, norm = given(CASES[0], torch.float32)
    wrong = {
        "one group, got 2": (grad, x, *several_groups(norm), 0.0, True, 4, 4, 2, 1),
        "a transposed convolution": (torch.randn(2, 18, 2, 2), x, *norm, 0.0, False, 4, 4, 2, 1),
        r"mean and var \(groups, 24\)": (grad, x, *(t[:, :5] for t in norm[:2]), *norm[2:], 0.0, True, 4, 4, 2, 1),
        "weight and bias, or neither": (grad, x, *norm[:3], None, EPS, 0.0, True, 4, 4, 2, 1),
    }
    for message, arguments in wrong.items():
        for kernel in KERNELS:
            with pytest.raises(RuntimeError, match=message):
                getattr(torch.ops.ganfast, f"{kernel}_conv_norm_weight_gradient")(*arguments)
