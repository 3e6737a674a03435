"""What holds for the ops of the page conv_norm on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import BATCH_LAYOUTS, poisoned
from parity import assert_parity
from torch import Tensor

from ganfast.ops import conv_norm as page
from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_reference

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """A convolution of maps (n, inputs, size, size) to ``outputs`` channels, behind a norm of ``groups`` unless that is off."""

    n: int
    inputs: int
    outputs: int
    size: int
    kernel: int
    stride: int
    padding: int
    transposed: bool
    groups: int = 1
    slope: float = 0.0
    norm: bool = True
    affine: bool = True

    def __str__(self) -> str:
        of = f"{'transposed-' if self.transposed else ''}{self.n}x{self.inputs}x{self.outputs}-{self.size}px"
        to = f"k{self.kernel}s{self.stride}p{self.padding}-groups{self.groups}-slope{self.slope:g}"
        return f"{of}-{to}{'' if self.norm else '-first'}{'' if self.affine else '-bare'}"

    @property
    def steps(self) -> tuple[bool, int, int]:
        return self.transposed, self.stride, self.padding


# DCGAN's layers and ResNet's, generators' and critics'; images and scores on either side; one pixel; groups whose pixels are less
# than a tile; strides larger than the kernel; more than one tile of pixels, of channels, and of what is summed.
CASES = [
    Case(4, 10, 20, 5, 4, 2, 1, True),
    Case(4, 18, 3, 6, 4, 2, 1, True, groups=2),
    Case(6, 20, 12, 7, 4, 2, 1, False, groups=3, slope=0.2),
    Case(4, 3, 12, 7, 4, 2, 1, False, groups=2, norm=False),
    Case(4, 3, 5, 7, 3, 1, 1, False, groups=2, slope=0.2),
    Case(4, 16, 1, 4, 4, 1, 0, False, slope=0.2),
    Case(6, 16, 32, 1, 4, 1, 0, True, groups=2),
    Case(4, 16, 32, 1, 4, 1, 0, True, norm=False),
    Case(2, 70, 40, 5, 3, 1, 1, False, groups=2, affine=False),
    Case(2, 8, 6, 3, 2, 3, 0, True, groups=2, slope=0.2),
    Case(2, 1, 1, 9, 3, 1, 1, True, slope=0.5),
]


@dataclass(frozen=True)
class Given:
    """What the ops are called with."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    norm: tuple[Any, ...]  # mean, var, gamma, beta, eps, slope
    grad: Tensor
    case: Case

    def forward(self, groups: int | None = None) -> tuple[Any, ...]:
        return self.x, self.weight, self.bias, *self.norm, *self.case.steps, self.case.groups if groups is None else groups

    def input_gradient(self) -> tuple[Any, ...]:
        return self.grad, self.weight, self.x, *self.norm, *self.case.steps

    def weight_gradient(self) -> tuple[Any, ...]:
        transposed, *steps = self.case.steps
        return self.grad, self.x, *self.norm, transposed, *self.weight.shape[2:], *steps


def given(case: Case, dtype: torch.dtype, layout: str = "channels-last") -> Given:
    x = 2 * torch.randn(case.n, case.inputs, case.size, case.size) + 1
    ends = (case.inputs, case.outputs) if case.transposed else (case.outputs, case.inputs)
    weight, bias = torch.randn(*ends, case.kernel, case.kernel), torch.randn(case.outputs)
    gamma, beta = (torch.randn(case.inputs) if case.affine else None for _ in range(2))
    x, weight = (BATCH_LAYOUTS[layout](t.to(dtype)) for t in (x, weight))
    mean, var = batch_norm_act_reference(x, None, None, case.groups, EPS, 1.0, False)[1:] if case.norm else (None, None)
    arguments = x, weight, bias, mean, var, gamma, beta, EPS, case.slope, *case.steps, 0
    grad = torch.randn_like(page.conv_norm_reference(*arguments)[0])
    return Given(x, weight, bias, (mean, var, gamma, beta, EPS, case.slope), grad, case)


def moved(arguments: tuple[Any, ...], device: str) -> list[Any]:
    return [a.to(device) if isinstance(a, Tensor) else a for a in arguments]


def wide(arguments: tuple[Any, ...]) -> list[Any]:
    return [a.double() if isinstance(a, Tensor) else a for a in arguments]


def check(case: Case, dtype: torch.dtype, device: str = "cpu", layout: str = "channels-last") -> None:
    at = given(case, dtype, layout)
    check_forward(at, device)
    if case.norm:
        check_input_gradient(at, device)
        check_weight_gradient(at, device)


def check_forward(at: Given, device: str = "cpu") -> None:
    with poisoned():
        y, mean, var = (found.cpu() for found in page.conv_norm(*moved(at.forward(), device)))
        alone, none, _ = page.conv_norm(*moved(at.forward(groups=0), device))
    torchs, exact = page.conv_norm_reference(*at.forward())[0], page.conv_norm_reference(*wide(at.forward()))[0]
    length = at.weight[0].numel()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_parity(y, torchs, exact, reduce_length=length, name="y")
    assert torch.equal(alone.cpu(), y) and none.shape == (0, at.case.outputs)
    # those of y as it was rounded: of the op's own, so that neither rounding is counted twice
    arguments = None, None, at.case.groups, EPS, 1.0, False
    of_y, of_exact = (batch_norm_act_reference(t, *arguments)[1:] for t in (y, y.double()))
    m = y.numel() // mean.numel()
    largest = y.double().abs().max().item()
    assert_parity(mean, of_y[0], of_exact[0], reduce_length=m, scale=largest, name="mean")
    assert_parity(var, of_y[1], of_exact[1], reduce_length=m, name="var")


def check_input_gradient(at: Given, device: str = "cpu") -> None:
    with poisoned():
        found = [t.cpu() for t in page.conv_norm_input_gradient(*moved(at.input_gradient(), device))]
    torchs = page.conv_norm_input_gradient_reference(*at.input_gradient())
    exact = page.conv_norm_input_gradient_reference(*wide(at.input_gradient()))
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    da = page._input_gradient(at.grad.double(), at.weight.double(), at.x.shape[2:], *at.case.steps)
    # what is subtracted: of dz nothing is left where its mean and x^ explain it
    _, var, gamma, *_ = at.norm
    gains = (var + EPS).rsqrt() * (1 if gamma is None else gamma.abs())
    size = (da.abs() * gains.repeat_interleave(len(da) // len(gains), 0)[:, :, None, None]).max().item()
    length = at.weight.numel() // at.case.inputs
    assert_parity(found[0], torchs[0], exact[0], reduce_length=length, scale=size, name="dx")
    # sums of terms of any sign, each of which carries the rounding of da to the factors' type
    terms = da.transpose(0, 1).flatten(1).norm(dim=1).max().item()
    rounding = torch.finfo(at.x.dtype).eps * terms
    for name, ours, plain, true in zip(("dgamma", "dbeta"), found[1:], torchs[1:], exact[1:], strict=True):
        assert ours.dtype == plain.dtype == torch.float32
        error, theirs = ((t.double() - true).abs().max().item() for t in (ours, plain))
        assert error <= 2 * theirs + 4 * rounding, (name, error, theirs, rounding)


def check_weight_gradient(at: Given, device: str = "cpu") -> None:
    with poisoned():
        found = page.conv_norm_weight_gradient(*moved(at.weight_gradient(), device)).cpu()
        wide_found = page.conv_norm_weight_gradient(*moved(at.weight_gradient(), device), torch.float32).cpu()
    torchs = page.conv_norm_weight_gradient_reference(*at.weight_gradient())
    exact = page.conv_norm_weight_gradient_reference(*wide(at.weight_gradient()))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_parity(found, torchs, exact, reduce_length=at.grad[:, 0].numel(), name="dweight")
    assert found.dtype == at.x.dtype and wide_found.dtype == torch.float32
    assert_parity(wide_found.to(found.dtype), torchs, exact, reduce_length=at.grad[:, 0].numel(), name="dweight in float32")


def all_of(at: Given, device: str) -> list[Tensor]:
    found = [*page.conv_norm(*moved(at.forward(), device)), *page.conv_norm_input_gradient(*moved(at.input_gradient(), device))]
    return [t.cpu() for t in (*found, page.conv_norm_weight_gradient(*moved(at.weight_gradient(), device)))]


def check_any_layout(device: str = "cpu") -> None:
    at = given(CASES[-2], torch.float32)
    expected = all_of(at, device)
    for layout in ("contiguous", "sliced", "offset"):
        lay = BATCH_LAYOUTS[layout]
        laid_out = Given(lay(at.x), lay(at.weight), at.bias, at.norm, lay(at.grad), at.case)
        assert all(map(torch.equal, all_of(laid_out, device), expected)), layout


def check_groups_are_alone(device: str = "cpu") -> None:
    """What a group gives is as if it were alone, to the bit, and NaN stays in it and in the channels that it reaches."""
    case = Case(6, 5, 9, 3, 4, 2, 1, True, groups=2, slope=0.2)
    at = given(case, torch.float32)
    both = all_of(at, device)
    single = Case(3, 5, 9, 3, 4, 2, 1, True, slope=0.2)
    for i in range(2):
        part = slice(3 * i, 3 * i + 3)
        norm = at.norm[0][i : i + 1], at.norm[1][i : i + 1], *at.norm[2:]
        alone = all_of(Given(at.x[part], at.weight, at.bias, norm, at.grad[part], single), device)
        assert torch.equal(both[0][part], alone[0]) and torch.equal(both[3][part], alone[3])
        assert torch.equal(both[1][i], alone[1][0]) and torch.equal(both[2][i], alone[2][0])
    at.x[5, 1, 2, 2] = torch.nan
    mean, var = batch_norm_act(at.x, None, None, 2, EPS, 1.0, False)[1:]
    broken = all_of(Given(at.x, at.weight, at.bias, (mean, var, *at.norm[2:]), at.grad, case), device)
    assert torch.equal(broken[0][:3], both[0][:3]) and torch.equal(broken[3][:3], both[3][:3])
    assert broken[0][3:].isnan().all() and broken[1][1].isnan().all() and broken[1][0].isfinite().all()
    dx = broken[3][3:]
    assert dx[:, 1].isnan().all() and torch.equal(dx[:, 2:], both[3][3:, 2:])


def check_far_from_zero(device: str = "cpu") -> None:
    """A bias of 10^4 on outputs of standard deviation 1: squares that float32 does not have."""
    at = given(Case(4, 8, 12, 6, 4, 2, 1, True, norm=False), torch.float32)
    bias = at.bias + 1e4
    y, mean, var = (t.cpu() for t in page.conv_norm(*moved((at.x, at.weight / 16, bias, *at.forward()[3:]), device)))
    values = y.double().transpose(0, 1).flatten(1)
    # one rounding of a tile's mean and one of the result; the sums of squares lose nothing more than their own roundings
    torch.testing.assert_close(mean[0].double(), values.mean(1), rtol=2e-7, atol=0)
    torch.testing.assert_close(var[0].double(), values.var(1, correction=0), rtol=1e-5, atol=1e-6)


MAPS, FILTER, ONES = torch.ones(4, 3, 6, 6), torch.ones(5, 3, 3, 3), torch.ones(2, 3)
_ACT = 1e-5, 0.2, False
REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "channels": (page.conv_norm, (MAPS, FILTER[:, :2], None, None, None, None, None, *_ACT, 1, 1, 1)),
    "a bias": (page.conv_norm, (MAPS, FILTER, torch.ones(3), None, None, None, None, *_ACT, 1, 1, 1)),
    "no output": (page.conv_norm, (MAPS[:, :, :1, :1], FILTER, None, None, None, None, None, *_ACT, 1, 0, 1)),
    "groups": (page.conv_norm, (MAPS, FILTER, None, None, None, None, None, *_ACT, 1, 1, 3)),
    "gamma alone": (page.conv_norm, (MAPS, FILTER, None, ONES, ONES, ONES[0], None, *_ACT, 1, 1, 2)),
    "a short gamma": (page.conv_norm, (MAPS, FILTER, None, ONES, ONES, ONES[0, :2], ONES[0, :2], *_ACT, 1, 1, 2)),
    "another map": (page.conv_norm_input_gradient, (MAPS, FILTER, MAPS, ONES, ONES, None, None, *_ACT, 1, 1)),
    "another size": (page.conv_norm_weight_gradient, (MAPS, MAPS, ONES, ONES, None, None, *_ACT, 3, 3, 2, 1)),
}


def check_refusal(name: str, device: str = "cpu") -> None:
    op, arguments = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError)):
        op(*moved(arguments, device))
