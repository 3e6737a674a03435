from __future__ import annotations

import math

import pytest
import torch

from ganfast.errors import InvalidValue
from ganfast.interpolation import lerp, slerp


@pytest.mark.parametrize("way", [lerp, slerp])
def test_it_begins_and_ends_where_it_should(way: object, generator: torch.Generator) -> None:
    a, b = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(way(a, b, 0.0), a)  # type: ignore[operator]
    torch.testing.assert_close(way(a, b, 1.0), b)  # type: ignore[operator]
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(way(a, b, t)[3], way(a[3], b[3], 0.75))  # type: ignore[operator]


def test_the_straight_line() -> None:
    a, b = torch.tensor([0.0, 4.0]), torch.tensor([2.0, 0.0])
    assert lerp(a, b, 0.25).tolist() == [0.5, 3.0]


def test_the_great_circle_turns_evenly_at_one_length() -> None:
    a, b = torch.tensor([3.0, 0.0], dtype=torch.float64), 3 * torch.tensor([math.cos(2), math.sin(2)], dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        assert slerp(a, b, t).tolist() == pytest.approx([3 * math.cos(2 * t), 3 * math.sin(2 * t)], rel=1e-12)


def test_lengths_that_differ_are_passed_through_on_the_way() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    middle = slerp(a, b, 0.5)
    assert middle.tolist() == pytest.approx([math.sqrt(0.5), 5 * math.sqrt(0.5)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nearly_one_direction_is_nearly_the_straight_line(dtype: torch.dtype) -> None:
    a = torch.tensor([1.0, 0.0], dtype=dtype)
    for angle in (0.0, 1e-9, 5e-5, 2e-4, 5e-4, 2e-3):
        b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=dtype)
        truth = torch.tensor([math.cos(angle / 4), math.sin(angle / 4)], dtype=dtype)
        # the straight line is inside of the circle by angle^2 / 8, at angles below 1e-3 in float32 and 1e-4 in float64
        error = 2e-7 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(slerp(a, b, 0.25), truth, rtol=0, atol=error)
    zero = torch.zeros(2, dtype=dtype)
    torch.testing.assert_close(slerp(zero, zero, 0.5), zero)


def test_refusals() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    with pytest.raises(InvalidValue, match="opposite directions"):
        slerp(a, torch.tensor([[1.0, 2.0], [-6.0, -2.0]]), 0.5)
    with pytest.raises(InvalidValue, match=r"latents of one width, got \(2, 2\) and \(3,\)"):
        lerp(a, torch.zeros(3), 0.5)
