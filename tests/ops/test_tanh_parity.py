"""The C++ kernel of tanh against float64, in units in the last place, and against PyTorch where there is but one right answer."""

from __future__ import annotations

import pytest
import torch
from cases import BATCH_LAYOUTS
from torch import Tensor
from torch.library import opcheck

from ganfast.ops import library
from ganfast.ops.tanh import tanh, tanh_op

pytestmark = pytest.mark.tier(2)
ODD = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 2e-38, -2e-38, 9.1, -9.1, 20.0, -3e38])


@pytest.fixture(autouse=True, scope="module")
def _the_kernels_are_there() -> None:
    assert library.CPU == "cpp", f"expected the C++ kernels, got the {library.CPU}"


def units(found: Tensor, x: Tensor) -> Tensor:
    """How far off, in units in the last place of the exact result."""
    exact = x.double().tanh()
    size = exact.abs().clamp(min=torch.finfo(found.dtype).tiny)
    unit = torch.exp2(size.log2().floor()) * torch.finfo(found.dtype).eps
    return (found.double() - exact).abs() / unit


def test_it_is_within_two_units_everywhere() -> None:
    """A million numbers of all sizes, dense about the change from one formula to the other and about where the result is 1."""
    of_all_sizes, dense = torch.logspace(-44, 2, 400_000, dtype=torch.float64), torch.linspace(0.5, 10, 600_000)
    sizes = torch.cat([of_all_sizes, dense.double()])
    x = torch.cat([sizes, -sizes]).float()
    y = tanh(x)
    assert units(y, x).max() < 2
    assert torch.equal(y[: len(sizes)], -y[len(sizes) :]) and y.abs().max() == 1
    # one rounding, of what is a good deal more exact: half a unit, and a little; less than a normal number may become 0
    low = x[x.abs() > 2e-38].bfloat16()
    assert units(tanh(low), low).max() < 0.51


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zeros_infinities_and_nan(dtype: torch.dtype) -> None:
    x = ODD.to(dtype).repeat(3)  # a whole register, and a part of one
    y, expected = tanh(x), torch.tanh(x)
    assert torch.equal(y.isnan(), x.isnan()) and torch.equal(y.signbit()[~x.isnan()], x.signbit()[~x.isnan()])
    assert torch.equal(y[~x.isnan()], expected[~x.isnan()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", BATCH_LAYOUTS)
def test_it_lies_as_pytorchs_whatever_the_threads(layout: str, dtype: torch.dtype) -> None:
    x = BATCH_LAYOUTS[layout](torch.randn(5, 3, 41, 37).to(dtype))
    expected, threads = torch.tanh(x), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = tanh(x)
            assert y.stride() == expected.stride()
            assert torch.equal(y, tanh(x.contiguous()))
    finally:
        torch.set_num_threads(threads)


def test_shapes_and_types_that_are_no_matter() -> None:
    for shape in ((), (0,), (1,), (17,), (2, 0, 3)):
        x = torch.randn(shape)
        assert tanh(x).shape == shape
        torch.testing.assert_close(tanh(x), torch.tanh(x))
    for dtype in (torch.float64, torch.float16):
        assert torch.equal(tanh(torch.ones(3, dtype=dtype)), torch.tanh(torch.ones(3, dtype=dtype)))
    with pytest.raises(RuntimeError, match="expected x in float32 or bfloat16"):
        tanh_op(torch.ones(2, dtype=torch.float64))


def test_gradients_of_the_first_and_second_order() -> None:
    """Of float32, whose differences have too few digits: against PyTorch's."""
    x, upstream, direction = torch.randn(3, 40)
    found = []
    for function in (tanh, torch.tanh):
        point = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(point), point, upstream, create_graph=True)
        found.append([first, *torch.autograd.grad(first, point, direction)])
    torch.testing.assert_close(*found)
    assert torch.autograd.grad(tanh(point).sum(), point)[0].grad_fn is None


def test_opcheck() -> None:
    for x in (torch.randn(4, 3), torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()):
        opcheck(tanh_op.overload, (x,))


def test_it_compiles_and_is_transformed() -> None:
    x = torch.randn(6)
    torch.testing.assert_close(torch.compile(tanh, backend="aot_eager", fullgraph=True)(x), torch.tanh(x))
    torch.testing.assert_close(torch.func.grad(lambda x: tanh(x).sum())(x), 1 - torch.tanh(x) ** 2)
    torch.testing.assert_close(torch.vmap(tanh_op)(x), torch.tanh(x))
