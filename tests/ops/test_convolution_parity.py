"""The C++ kernels of convolutions against PyTorch's own, by the one rule of tests/parity.py, with the tiles of all processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import tiles
import torch
import torch.nn.functional as F
from cases import BATCH_LAYOUTS
from convolution_checks import CASES, Case
from parity import assert_parity
from torch import Tensor

from ganfast.ops import convolution, library

pytestmark = pytest.mark.tier(2)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


def products(case: Case, dtype: torch.dtype) -> Iterator[tuple[str, tuple[object, ...], Callable[..., Tensor], int]]:
    """Name, arguments, reference and length of the sums of all that the kernels can do of a case."""
    big, small, weight = case.make(dtype)
    steps, taps = (case.stride, case.padding), case.kernel**2
    if dtype == torch.float32 or case.b * case.kernel % 2 == 0:
        yield "convolve", (big, weight, torch.randn(case.a), *steps), convolution.convolve_reference, taps * case.b
    if dtype == torch.float32 or case.a % 2 == 0:
        arguments = (small, weight, torch.randn(case.b), *steps, *case.extents)
        yield "transposed_convolve", arguments, convolution.transposed_convolve_reference, taps * case.a
    arguments = (small, big, case.kernel, case.kernel, *steps)
    length = case.n * case.h**2
    yield "convolution_weight_gradient", arguments, convolution.convolution_weight_gradient_reference, length


def kernels(case: Case, name: str) -> list[Callable[..., Tensor]]:
    """Both, where Winograd's algorithm applies."""
    steps = case.kernel, case.stride, case.padding
    summed = {"convolve": case.b, "transposed_convolve": case.a}.get(name, 2)
    applies = steps in ((4, 2, 1), (3, 1, 1)) and case.h % 2 == summed % 2 == case.output_padding == 0
    return [getattr(torch.ops.ganfast, f"{way}_{name}") for way in ("tiled", *["winograd"] * applies)]


def exact(arguments: tuple[object, ...]) -> list[object]:
    return [a.double() if isinstance(a, Tensor) else a for a in arguments]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case: Case, dtype: torch.dtype) -> None:
    for name, arguments, reference, length in products(case, dtype):
        for kernel in kernels(case, name):
            found, truth = kernel(*arguments), reference(*exact(arguments))
            # tiles of 4 x 4 are sums of products that cancel, which multiply rounding by so much (csrc/cpu/winograd.h)
            tiles = dtype == torch.float32 and "winograd" in str(kernel) and case.h % 4 == 0
            scale = truth.abs().max().item() * {3: 4.8, 4: 2.8}[case.kernel] if tiles else None
            assert_parity(found, reference(*arguments), truth, reduce_length=length, scale=scale, name=str(kernel))


@pytest.mark.parametrize("kernel", [(5, 2), (2, 5), (1, 3), (4, 3)])
@pytest.mark.parametrize(("stride", "padding"), [(7, 3), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [(1, 1), (3, 8)])
def test_kernels_and_maps_that_are_no_squares(kernel: tuple[int, int], stride: int, padding: int, size: tuple[int, int]) -> None:
    """Also kernels that step over most of the map, or reach less far than the padding."""
    if any(extent + 2 * padding < taps for extent, taps in zip(size, kernel, strict=True)):
        size = (5, 6)
    big, weight = torch.randn(3, 4, *size), torch.randn(8, 4, *kernel)
    arguments = big, weight, None, stride, padding
    small = convolution.convolve_reference(*arguments)
    assert_parity(
        torch.ops.ganfast.tiled_convolve(*arguments),
        small,
        convolution.convolve_reference(*exact(arguments)),
        reduce_length=weight[0].numel(),
    )
    arguments = small, big, *kernel, stride, padding
    assert_parity(
        torch.ops.ganfast.tiled_convolution_weight_gradient(*arguments),
        convolution.convolution_weight_gradient_reference(*arguments),
        convolution.convolution_weight_gradient_reference(*exact(arguments)),
        reduce_length=small[0].numel() * 3,
    )


@pytest.mark.parametrize("channels", [8, 40])
def test_a_result_without_pixels_is_refused(channels: int) -> None:
    """Modules leave it to PyTorch, which makes an empty one."""
    with pytest.raises(RuntimeError, match="at least one pixel, got 0 x 0"):
        torch.ops.ganfast.tiled_transposed_convolve(torch.ones(2, 6, 1, 1), torch.ones(6, channels, 2, 2), None, 1, 1, 0, 0, 1.0)


@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
def test_factors_lie_anyhow(layout: str) -> None:
    for name, arguments, *_ in products(CASES[0], torch.float32):
        op = getattr(torch.ops.ganfast, f"tiled_{name}")
        laid_out = [BATCH_LAYOUTS[layout](a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in arguments]
        packed = [a.contiguous() if isinstance(a, Tensor) else a for a in laid_out]
        assert torch.equal(op(*laid_out), op(*packed)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        for case in CASES:
            for name, arguments, *_ in products(case, dtype):
                for kernel in kernels(case, name):
                    results = []
                    for count in (1, 2, 5):
                        torch.set_num_threads(count)
                        results.append(kernel(*arguments))
                    assert all(torch.equal(results[0], other) for other in results[1:]), (kernel, case)
        for channels in (1, 3):
            grad = torch.randn(64, channels, 64, 64).to(dtype)
            results = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(convolution.bias_gradient(grad, torch.float32))
            assert all(torch.equal(results[0], other) for other in results[1:]), channels
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_where_they_reach(dtype: torch.dtype, value: float) -> None:
    for case in CASES:
        for name, arguments, reference, _ in products(case, dtype):
            arguments[0][tuple(size // 2 for size in arguments[0].shape)] = value
            found, expected = getattr(torch.ops.ganfast, f"tiled_{name}")(*arguments), reference(*exact(arguments))
            assert torch.equal(found.isfinite(), expected.isfinite()), (name, case)
            assert not found.isfinite().all(), (name, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_weight_in_float32_is_rounded_when_it_is_read_and_its_gradient_not_at_all(case: Case) -> None:
    for name, arguments, *_ in products(case, torch.bfloat16):
        for kernel in kernels(case, name):
            if name == "convolution_weight_gradient":
                found = kernel(*arguments, torch.float32)
                assert found.dtype == torch.float32
                assert torch.equal(found.bfloat16(), kernel(*arguments)), kernel
                assert not torch.equal(found, found.bfloat16().float()), kernel
            else:
                x, weight, *others = arguments
                assert isinstance(weight, Tensor)
                wide = weight.float() * (1 + torch.rand(weight.shape) / 64)
                assert torch.equal(kernel(x, wide, *others), kernel(x, wide.bfloat16(), *others)), kernel


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_activation_in_the_end(case: Case, dtype: torch.dtype, slope: float) -> None:
    for name, arguments, reference, length in products(case, dtype):
        for kernel in kernels(case, name) if name != "convolution_weight_gradient" else ():
            z, y = kernel(*arguments), kernel(*arguments, slope)
            assert torch.equal(y[z >= 0], z[z >= 0]), kernel
            if slope == 0:
                assert not y[z < 0].any(), kernel
            elif dtype == torch.float32:
                assert torch.equal(y, F.leaky_relu(z, slope)), kernel
            else:  # of the sum before it is rounded
                tiles = {"scale": reference(*exact(arguments)).abs().max().item()} if "winograd" in str(kernel) else {}
                expected = reference(*arguments, slope), reference(*exact(arguments), slope)
                assert_parity(y, *expected, reduce_length=length, name=str(kernel), **tiles)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["convolve", "transposed_convolve"])
def test_no_activation_hides_nan(name: str, dtype: torch.dtype, slope: float) -> None:
    case = CASES[0]
    (_, arguments, reference, _), *_ = (product for product in products(case, dtype) if product[0] == name)
    arguments[0][1, 1, 2, 3] = float("nan")
    expected = reference(*exact(arguments), slope).isnan()
    for kernel in kernels(case, name):
        found = kernel(*arguments, slope).isnan()
        # Winograd's algorithm spreads it over the tile
        assert torch.equal(found, expected) if "tiled" in str(kernel) else bool(found[expected].all()), kernel
        assert expected.any() and not found.all()


@pytest.mark.parametrize(("slope", "expected"), [(0.0, 0.0), (0.2, -float("inf"))])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_ends_infinity_and_leaky_relu_does_not(dtype: torch.dtype, slope: float, expected: float) -> None:
    big, weight = torch.randn(2, 4, 6, 6).to(dtype), torch.rand(3, 4, 3, 3).to(dtype)
    big[0, 0, 0, 0] = -float("inf")
    found = torch.ops.ganfast.tiled_convolve(big, weight, None, 1, 1, slope)
    assert (found[0, :, :2, :2] == expected).all()
    assert found[0, :, 2:].isfinite().all() and found[1].isfinite().all()


@pytest.mark.parametrize("shape", [(2, 4, 7, 7), (2, 4, 8, 6), (2, 4, 8, 8)])
def test_winograds_algorithm_is_refused_where_it_does_not_apply(shape: tuple[int, ...]) -> None:
    applies = shape[2] % 4 == shape[3] % 4 == 0
    arguments = torch.randn(shape), torch.randn(6, 4, 4, 4), None, 2, 1
    if applies:
        torch.ops.ganfast.winograd_convolve(*arguments)
        return
    with pytest.raises(RuntimeError, match="an even number of pixels"):
        torch.ops.ganfast.winograd_convolve(*arguments)


def test_the_type_that_a_weight_gradient_has_anyway_makes_no_choice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ways round differently, and so would two callers of which one says the type."""
    asked: list[str] = []

    def fastest(name: str, ways: object) -> str:
        asked.append(name)
        return "tiled"

    monkeypatch.setattr(convolution.tuning, "fastest", fastest)
    small, big = torch.randn(3, 4, 14, 14), torch.randn(3, 4, 28, 28)  # sizes that nothing else has: what was chosen stays
    for dtype in (None, torch.float32):
        convolution.convolution_weight_gradient(small, big, 4, 4, 2, 1, dtype)
    convolution.convolution_weight_gradient(small.bfloat16(), big.bfloat16(), 4, 4, 2, 1, torch.float32)
    assert len(asked) == 3 and len(set(asked)) == 2


@pytest.mark.parametrize("tile", tiles.TILES)
def test_the_tiles_of_lesser_processors(tile: str) -> None:
    tiles.run(tile, "import test_convolution_parity as t; [t.test_parity(c, d) for c in t.CASES for d in t.DTYPES]")
