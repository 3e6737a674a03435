"""What holds for batch norm's ops on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import BATCH_LAYOUTS, DTYPES, Batch, poisoned
from parity import assert_parity
from torch import Tensor

from ganfast.ops.batch_norm import (
    batch_norm_act,
    batch_norm_act_backward,
    batch_norm_act_backward_reference,
    batch_norm_act_reference,
    batch_norm_act_tracked,
    normalise_act,
    normalise_act_reference,
)

EPS = 1e-5


@dataclass(frozen=True)
class Form:
    """How an op is called. ``groups`` is taken down to what divides the batch."""

    groups: int = 1
    slope: float = 1.0
    tanh: bool = False
    affine: bool = True

    def __str__(self) -> str:
        act = "tanh" if self.tanh else f"slope{self.slope:g}"
        return f"{act}-groups{self.groups}{'' if self.affine else '-bare'}"


FORMS = [
    Form(slope=0.0),
    Form(groups=2, slope=0.2),
    Form(groups=4),
    Form(tanh=True),
    Form(slope=0.2, affine=False),
    Form(groups=2, tanh=True, affine=False),
]


@dataclass(frozen=True)
class Given:
    """What both ops are called with."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    groups: int
    eps: float
    slope: float
    tanh: bool

    def arguments(self, device: str = "cpu", wide: bool = False) -> tuple[Any, ...]:
        tensors = ((t.double() if wide else t).to(device) if t is not None else None for t in (self.x, self.weight, self.bias))
        return *tensors, self.groups, self.eps, self.slope, self.tanh


def given(case: Batch, form: Form, dtype: torch.dtype, generator: torch.Generator, eps: float = EPS) -> Given:
    x, groups, weight, bias = case.make(dtype, generator), math.gcd(form.groups, case.shape[0]), None, None
    if form.affine:
        wide = torch.promote_types(dtype, torch.float32)
        weight, bias = (torch.randn(case.shape[1], generator=generator).to(wide) for _ in range(2))
    return Given(x, weight, bias, groups, eps, form.slope, form.tanh)


def check_forward(at: Given, device: str = "cpu") -> None:
    with poisoned():
        y, mean, var = batch_norm_act(*at.arguments(device))
        x, weight, bias, _, *act = at.arguments(device)
        again = normalise_act(x, weight, bias, mean, var, *act)
    assert torch.equal(again.nan_to_num(), y.nan_to_num())
    assert_strides(again, y)
    y, mean, var = y.cpu(), mean.cpu(), var.cpu()
    torch_y, torch_mean, torch_var = batch_norm_act_reference(*at.arguments())
    exact_y, exact_mean, exact_var = batch_norm_act_reference(*at.arguments(wide=True))
    assert_strides(y, torch_y)
    m = at.x.numel() // mean.numel()
    # a mean cancels, and so does the variance of a channel of one value over and over
    largest = finite_max(at.x)
    assert_parity(mean, torch_mean, exact_mean, reduce_length=m, scale=largest, name="mean")
    constant = torch.finfo(mean.dtype).eps * largest**2 if largest else None
    assert_parity(var, torch_var, exact_var, reduce_length=m, scale=larger(finite_max(exact_var), constant), name="var")
    # and z, a product and a bias of the other sign, of which an activation may leave next to nothing
    hat, _ = normalised(at, exact_mean, exact_var)
    terms = hat if at.weight is None or at.bias is None else hat * per_channel(at.weight[None], hat)
    size = terms.abs() if at.bias is None else terms.abs() + per_channel(at.bias[None], hat).abs()
    largest = larger(finite_max(exact_y), finite_max(size))
    assert_parity(y, torch_y, exact_y, reduce_length=m if y.dtype == mean.dtype else 1, scale=largest, name="y")


def check_backward(at: Given, grad: Tensor, device: str = "cpu") -> None:
    """``grad`` is of x's shape, in any layout and dtype, and zero where z is within rounding of the kink: see :func:`smooth`."""
    statistics = batch_norm_act_reference(*at.arguments())[1:]
    x, weight, bias, groups, *others = at.arguments(device)
    with poisoned():
        found = batch_norm_act_backward(grad.to(device), x, weight, bias, *(s.to(device) for s in statistics), *others)
    dx, dweight, dbias = (tensor.cpu() for tensor in found)
    x, weight, bias, groups, *others = at.arguments()
    torchs = batch_norm_act_backward_reference(grad, x, weight, bias, *statistics, *others)
    x, weight, bias, groups, *others = at.arguments(wide=True)
    wide = [s.double() for s in statistics]
    exact = batch_norm_act_backward_reference(grad.double(), x, weight, bias, *wide, *others)
    assert_strides(dx, torchs[0])
    hat, z = normalised(at, *wide)
    slopes = torch.where(z > 0, 1.0, at.slope)
    # what is subtracted: of 1 in tanh's derivative, and of dz, of which nothing is left where its mean and x^ explain it
    dz = grad.double() * (1 if at.tanh else slopes)
    m = at.x.numel() // wide[0].numel()
    inverse = ((wide[1] + at.eps).rsqrt()).repeat_interleave(x.shape[0] // groups, 0)
    size = per_channel(inverse, x) * dz * (1 if weight is None else per_channel(weight[None], x))
    length = m if dx.dtype == statistics[0].dtype else 1
    assert_parity(dx, torchs[0], exact[0], reduce_length=length, scale=finite_max(size), name="dx")
    for name, actual, plain, true, terms in (
        ("dweight", dweight, torchs[1], exact[1], dz * hat),
        ("dbias", dbias, torchs[2], exact[2], dz),
    ):
        at_random = terms.transpose(0, 1).flatten(1).norm(dim=1)  # as large as a sum is whose terms have any sign
        assert_parity(actual, plain, true, reduce_length=m * groups, scale=finite_max(at_random), name=name)


def per_channel(numbers: Tensor, x: Tensor) -> Tensor:
    return numbers.view(*numbers.shape, *[1] * (x.dim() - 2))


def normalised(at: Given, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """x^ and z in float64."""
    each = at.x.shape[0] // at.groups
    mean, var = (per_channel(s.double().repeat_interleave(each, 0), at.x) for s in (mean, var))
    hat = (at.x.double() - mean) * (var + at.eps).rsqrt()
    if at.weight is None or at.bias is None:
        return hat, hat
    return hat, hat * per_channel(at.weight[None].double(), at.x) + per_channel(at.bias[None].double(), at.x)


def smooth(at: Given, grad: Tensor, layout: str) -> Tensor:
    """``grad`` in this layout, zero where rounding decides on which side of the kink z lies: both slopes are right there."""
    mean, var = batch_norm_act_reference(*at.arguments())[1:]
    _, z = normalised(at, mean, var)
    each = per_channel((mean.abs() * (var + at.eps).rsqrt()).double().repeat_interleave(at.x.shape[0] // at.groups, 0), at.x)
    weight = 1.0 if at.weight is None else per_channel(at.weight[None].double().abs(), at.x)
    near = z.abs() <= 1e-5 * (1 + each * weight)
    if at.slope == 1 or at.tanh:
        near = torch.zeros_like(near)
    if layout == "expanded":  # the first channel's everywhere
        near = near.any(1, keepdim=True).expand(near.shape)
    return BATCH_LAYOUTS[layout](torch.where(near, 0.0, grad))


def finite_max(tensor: Tensor) -> float | None:
    sizes = tensor.double().abs()
    sizes = sizes[sizes.isfinite()]
    return sizes.max().item() if len(sizes) else None


def larger(*sizes: float | None) -> float | None:
    return max((size for size in sizes if size is not None), default=None)


def assert_strides(actual: Tensor, promised: Tensor) -> None:
    """Those of the shape function; a compiled graph reads its results with them."""
    for size, stride, expected in zip(actual.shape, actual.stride(), promised.stride(), strict=True):
        # the stride of a single step is never used
        assert stride == expected or size == 1, (actual.stride(), promised.stride())


def check_form(case: Batch, form: Form, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """Both ops on a volume like this one, the gradient in x's layout."""
    at = given(case, form, dtype, generator)
    check_forward(at, device)
    check_backward(at, smooth(at, torch.randn(case.shape, generator=generator).to(dtype), case.layout), device)


def check(case: Batch, dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    for form in FORMS:
        check_form(case, form, dtype, generator, device)


def check_any_pair_of_layouts(generator: torch.Generator, device: str = "cpu") -> None:
    for shape in ((4, 3, 2, 5), (2, 3, 9, 8)):
        for x, grad in itertools.product(BATCH_LAYOUTS, repeat=2):
            at = given(Batch("images", shape, x), Form(slope=0.2), torch.float32, generator)
            check_backward(at, smooth(at, torch.randn(shape, generator=generator), grad), device)


def check_any_mix_of_types(generator: torch.Generator, device: str = "cpu") -> None:
    """Parameters in any type, whose values are float32's, and gradients in any."""
    shape = (5, 3, 4, 7)
    for x, parameter, grad in itertools.product(DTYPES, DTYPES, DTYPES):
        weight, bias = (torch.randn(3, generator=generator).to(parameter) for _ in range(2))
        at = Given(torch.randn(shape, generator=generator).to(x), weight, bias, 1, EPS, 0.2, False)
        check_forward(at, device)
        # float64's own digits are rounded before they are used, unless all is float64
        given_grad = smooth(at, torch.randn(shape, generator=generator).to(grad), "contiguous")
        check_backward(at, given_grad, device)


def check_far_from_zero(layout: str, generator: torch.Generator, device: str = "cpu") -> None:
    """Mean 10^4, standard deviation 1: squares that float32 does not have."""
    for shape in ((16, 3, 12, 12), (64, 5, 2, 2)):
        x = BATCH_LAYOUTS[layout](torch.randn(shape, generator=generator) + 1e4)
        at = Given(x, torch.ones(shape[1]), torch.zeros(shape[1]), 1, EPS, 0.0, False)
        check_forward(at, device)
        check_backward(at, smooth(at, torch.randn(shape, generator=generator), layout), device)


def check_constant(dtype: torch.dtype, layout: str, generator: torch.Generator, device: str = "cpu") -> None:
    """A channel that has one value over and over becomes its bias, beside others that vary."""
    for shape in ((6, 3, 12, 12), (7, 3, 3, 2), (1, 3, 1, 1)):
        x = torch.randn(shape, generator=generator)
        x[:, 1] = 0.3
        bias = torch.randn(3, generator=generator)
        at = Given(BATCH_LAYOUTS[layout](x.to(dtype)), torch.ones(3), bias, 1, EPS, 1.0, False)
        check_forward(at, device)
        check_backward(at, torch.randn(shape, generator=generator).to(dtype), device)
        y, _, var = batch_norm_act(*at.arguments(device))
        assert torch.equal(y[:, 1].cpu(), at.bias[1].to(dtype).expand(y[:, 1].shape))  # type: ignore[index]
        assert var[0, 1].item() <= 1e-12


def check_nan_and_inf(value: float, dtype: torch.dtype, layout: str, generator: torch.Generator, device: str = "cpu") -> None:
    """They stay in their group and channel."""
    for shape in ((4, 3, 9, 9), (6, 5, 2, 3), (8, 130, 3, 3)):
        at = given(Batch("images", shape, layout), Form(groups=2, slope=0.2), dtype, generator)
        grad = torch.randn(shape, generator=generator).to(dtype)
        sound = [found.cpu() for found in batch_norm_act(*at.arguments(device))]
        x, weight, bias, groups, *others = at.arguments(device)
        sound_dx = batch_norm_act_backward(grad.to(device), x, weight, bias, *(s.to(device) for s in sound[1:]), *others)[0].cpu()
        broken = at.x.contiguous()
        broken[-1, 1].view(-1)[-1] = value
        x = BATCH_LAYOUTS[layout](broken).to(device)
        y, mean, var = batch_norm_act(x, weight, bias, groups, *others)
        dx, dweight, _ = batch_norm_act_backward(grad.to(device), x, weight, bias, mean, var, *others)
        touched = torch.zeros(shape, dtype=torch.bool)
        touched[shape[0] // 2 :, 1] = True
        for found, before in ((y.cpu(), sound[0]), (dx.cpu(), sound_dx)):
            assert found[touched].isnan().all()
            assert torch.equal(found[~touched], before[~touched])
        for found in (mean, var):
            assert (~found.isfinite()).nonzero().tolist() == [[1, 1]]
        assert dweight.isnan().nonzero().flatten().tolist() == [1]


def check_known(generator: torch.Generator, device: str = "cpu") -> None:
    """Statistics that are not x's own, in strides of their own."""
    for layout, slope in itertools.product(("contiguous", "channels-last", "cropped"), (0.2, 0.0)):
        at = given(Batch("images", (4, 5, 9, 9), layout), Form(groups=2, slope=slope), torch.float32, generator)
        at.x[0, :, 0, 0] = -torch.inf  # of which ReLU makes 0
        at.x[1, :, 2, 3] = torch.nan
        mean, var = torch.randn(5, 2, generator=generator).t(), torch.rand(5, 2, generator=generator).t()
        x, weight, bias, _, *act = at.arguments(device)
        y = normalise_act(x, weight, bias, mean.to(device), var.to(device), *act).cpu()
        _, z = normalised(at, mean, var)
        torchs = normalise_act_reference(*at.arguments()[:3], mean, var, *act)
        assert_strides(y, torchs)
        exact = z.relu() if slope == 0 else torch.where(z > 0, z, z * slope)
        assert_parity(y, torchs, exact, scale=finite_max(z))
        assert weight is not None
        assert torch.equal(exact[0, :, 0, 0].isfinite(), (weight.cpu() > 0) & (slope == 0))


def check_tracked(generator: torch.Generator, device: str = "cpu") -> None:
    """Running statistics as PyTorch's batch norm moves them, group by group; the rest as without them, to the bit."""
    for layout, dtype, groups, momentum, counts in (
        ("contiguous", torch.float32, 1, 0.1, True),
        ("channels-last", torch.float32, 2, 0.7, False),
        ("channels-last", torch.bfloat16, 3, 0.1, True),
        ("cropped", torch.float64, 2, 1.0, True),
        ("contiguous", torch.float16, 1, 0.0, True),
    ):
        at = given(Batch("images", (6, 37, 5, 9), layout), Form(groups=groups, slope=0.2), dtype, generator)
        wide = torch.promote_types(dtype, torch.float32)
        before = [torch.randn(37, generator=generator).to(wide), torch.rand(37, generator=generator).to(wide)]
        running, counted = [t.to(device, copy=True) for t in before], torch.tensor(40, device=device) if counts else None
        with poisoned():
            found = batch_norm_act_tracked(*at.arguments(device), *running, counted, momentum)
        for ours, alone in zip(found, batch_norm_act(*at.arguments(device)), strict=True):
            assert torch.equal(ours, alone)
        assert counted is None or counted.item() == 40 + groups
        torchs, exact = ([t.to(each).clone() for t in before] for each in (wide, torch.float64))
        for kept in (torchs, exact):
            for part in at.x.chunk(groups):
                F.batch_norm(part.to(kept[0].dtype), *kept, training=True, momentum=momentum)
        for name, ours, same, true, start in zip(("mean", "var"), running, torchs, exact, before, strict=True):
            largest = larger(finite_max(true), finite_max(start))  # they are moved between the two
            assert_parity(ours.cpu(), same, true, reduce_length=at.x[:, 0].numel(), scale=largest, name=f"running {name}")
    x, running = torch.randn(2, 3, 1, 1, generator=generator).to(device), [torch.full((3,), 5.0, device=device) for _ in range(2)]
    with pytest.raises((RuntimeError, ValueError), match=r"more than one value a channel, got \(2, 3, 1, 1\)"):
        batch_norm_act_tracked(x, None, None, 2, EPS, 0.0, False, *running, None, 0.1)
    assert all((t == 5).all() for t in running)


# Arguments that do not fit, and what all backends say of them.
RUNNING = torch.ones(3)
IMAGES = torch.ones(4, 3, 2, 2)
FEW, MANY = torch.ones(1, 3), torch.ones(3, 3)
REFUSED: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "one dimension": (
        batch_norm_act,
        (torch.ones(3), None, None, 1, EPS, 0.0, False),
        r"expected x \(N, C, ...\) with at least one value, got \(3,\)",
    ),
    "no sample": (batch_norm_act, (torch.ones(0, 3), None, None, 1, EPS, 0.0, False), r"at least one value, got \(0, 3\)"),
    "no group": (batch_norm_act, (IMAGES, None, None, 0, EPS, 0.0, False), "expected groups that divide the batch of 4, got 0"),
    "groups of no size": (batch_norm_act, (IMAGES, None, None, 3, EPS, 0.0, False), "divide the batch of 4, got 3"),
    "a weight alone": (batch_norm_act, (IMAGES, torch.ones(3), None, 1, EPS, 0.0, False), "weight and bias, or neither"),
    "a bias alone": (batch_norm_act, (IMAGES, None, torch.ones(3), 1, EPS, 0.0, False), "weight and bias, or neither"),
    "a short weight": (
        batch_norm_act,
        (IMAGES, torch.ones(2), torch.ones(3), 1, EPS, 0.0, False),
        r"expected weight \(3,\), got \(2,\)",
    ),
    "statistics of a channel less": (
        normalise_act,
        (IMAGES, None, None, torch.ones(1, 2), torch.ones(1, 2), EPS, 0.0, False),
        r"expected mean and var \(groups, 3\), as the forward pass gave them, got \(1, 2\)",
    ),
    "a mean alone": (normalise_act, (IMAGES, None, None, torch.ones(3), FEW, EPS, 0.0, False), r"got \(3,\)"),
    "known groups of no size": (normalise_act, (IMAGES, None, None, MANY, MANY, EPS, 0.0, False), "divide the batch of 4, got 3"),
    "statistics in float64": (normalise_act, (IMAGES, None, None, FEW.double(), FEW, EPS, 0.0, False), "mean and var"),
    "running statistics of a channel less": (
        batch_norm_act_tracked,
        (IMAGES, None, None, 1, EPS, 0.0, False, RUNNING, torch.ones(2), None, 0.1),
        r"expected running statistics \(3,\) in the type of the batch's, got \(2,\)",
    ),
    "running statistics in float64": (
        batch_norm_act_tracked,
        (IMAGES, None, None, 1, EPS, 0.0, False, RUNNING.double(), RUNNING, None, 0.1),
        "expected running statistics",
    ),
    "a count in float32": (
        batch_norm_act_tracked,
        (IMAGES, None, None, 1, EPS, 0.0, False, RUNNING, RUNNING, torch.tensor(1.0), 0.1),
        "expected a count in int64",
    ),
    "a bias as a column": (
        batch_norm_act,
        (IMAGES, torch.ones(3), torch.ones(3, 1), 1, EPS, 0.0, False),
        r"expected bias \(3,\), got \(3, 1\)",
    ),
}


def check_refusal(name: str, device: str = "cpu") -> None:
    op, arguments, said = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError), match=said):
        op(*(x.to(device) if isinstance(x, Tensor) else x for x in arguments))
