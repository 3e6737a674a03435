"""What holds for the op adam_ on every backend: the reference on the page, by the one rule of tests/parity.py.

The op runs on ``device``, and the reference and its float64 twin on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from cases import LAYOUTS
from parity import assert_parity
from torch import Tensor

from ganfast.ops.adam import adam_, adam_reference_

DOUBLE = torch.float64
DENSE = ("contiguous", "channels-last", "transposed", "reversed", "offset")  # layouts without gaps
SETTINGS = ((0.9, 0.999, 1e-8), (0.0, 0.9, 1e-8), (0.5, 0.999, 1e-3))  # beta1, beta2, eps
SHAPES = ((5, 3, 4, 4), (7,), (), (0, 3), (1,), (2, 1, 3, 3), (129, 65))
LARGE = ((40000,), (33, 31, 4, 4), (8193,))  # more than one task of the CPU, more than one block of CUDA
MANY = ((3,),) * 60  # more than one launch of CUDA


@dataclass
class Network:
    """Parameters and what belongs to them."""

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    averages: list[Tensor] = field(default_factory=list)

    def lists(self) -> tuple[list[Tensor], ...]:
        return self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps, self.averages

    def like(self, dtype: torch.dtype | None = None, device: str = "cpu") -> Network:
        """A copy with the same strides; number of steps in float32 always."""

        def copied(t: Tensor, dtype: torch.dtype | None) -> Tensor:
            return torch.empty_like(t, dtype=dtype, device=device).copy_(t)

        params, grads, exp_avgs, exp_avg_sqs, steps, averages = self.lists()
        floats = [[copied(t, dtype) for t in tensors] for tensors in (params, grads, exp_avgs, exp_avg_sqs)]
        return Network(*floats, [copied(t, None) for t in steps], [copied(t, dtype) for t in averages])


def network(
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: str = "contiguous",
    grads: str = "contiguous",
    averaged: bool = True,
) -> Network:
    """In the middle of training: moments of several steps, a number of steps for each parameter of its own."""

    def drawn(shape: tuple[int, ...], layout: str) -> Tensor:
        t = torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)
        return LAYOUTS[layout](t) if t.dim() > 1 else t

    found = Network()
    for i, shape in enumerate(shapes):
        found.params.append(drawn(shape, layout))
        found.grads.append(drawn(shape, grads))
        found.exp_avgs.append(drawn(shape, layout).mul_(0.1))
        found.exp_avg_sqs.append(drawn(shape, layout).square_())
        found.steps.append(torch.tensor(float(1 + i * 7 % 40)))
        if averaged:
            found.averages.append(drawn(shape, layout))
    return found


def number(value: float, device: str = "cpu") -> Tensor:
    return torch.full((), value, dtype=DOUBLE, device=device)


def step(
    call: Callable[..., None], net: Network, settings: tuple[float, ...], found_inf: float | None = None, lr: float = 0.01
) -> None:
    device = str(net.params[0].device) if net.params else "cpu"
    flag = None if found_inf is None else torch.tensor(found_inf, device=device)
    call(*net.lists(), number(lr, device), number(0.3, device), *settings, flag)


MADE_OF = {"params": (), "exp_avgs": ("grads", "params"), "exp_avg_sqs": (), "averages": ("params",)}


def _largest(t: Tensor) -> float:
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def check(net: Network, settings: tuple[float, ...], found_inf: float | None = None, device: str = "cpu") -> None:
    """Three steps."""
    actual, torchs, exact = net.like(device=device), net.like(), net.like(DOUBLE)
    for _ in range(3):
        step(adam_, actual, settings, found_inf)
        for twin in (torchs, exact):
            step(adam_reference_, twin, settings, found_inf)
        for each in (actual, torchs, exact):
            for t in each.steps:
                t.add_(1)
    for kind in ("params", "exp_avgs", "exp_avg_sqs", "averages"):
        for i, (found, same, wanted) in enumerate(zip(*(getattr(n, kind) for n in (actual, torchs, exact)), strict=True)):
            # a dozen roundings a step, of numbers as large as what they are made of: one that is the difference of two has
            # the rounding of those
            scale = max(_largest(getattr(net, made_of)[i]) for made_of in (kind, *MADE_OF[kind]))
            scale = max(scale, _largest(wanted))
            assert_parity(found.cpu(), same, wanted, reduce_length=36, scale=scale, name=f"{kind}[{i}]")
            assert found.stride() == getattr(net, kind)[i].stride()
    for kind in ("grads", "steps"):
        for found, before in zip(getattr(actual, kind), getattr(torchs, kind), strict=True):
            torch.testing.assert_close(found.cpu(), before, rtol=0, atol=0, equal_nan=True)


def check_layouts(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    for layout in DENSE:
        for grads in LAYOUTS:
            check(network([(5, 3, 4, 4), (6, 5)], dtype, generator, layout, grads), SETTINGS[0], device=device)


def check_sizes(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    for settings in SETTINGS:
        for averaged in (True, False):
            for shapes in (SHAPES, MANY, ()):
                check(network(shapes, dtype, generator, averaged=averaged), settings, device=device)
    check(network(LARGE, dtype, generator, "channels-last", "channels-last"), SETTINGS[0], device=device)


def check_found_inf(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    net = network(SHAPES, dtype, generator)
    for averaged in (True, False):
        check(network(SHAPES, dtype, generator, averaged=averaged), SETTINGS[0], 0.0, device)
    net.grads[0].view(-1)[3] = float("nan")
    after = net.like(device=device)
    step(adam_, after, SETTINGS[0], 1.0)
    for kind in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(map(torch.equal, (t.cpu() for t in getattr(after, kind)), getattr(net, kind)))
    for found, param, before in zip(after.averages, net.params, net.averages, strict=True):
        torch.testing.assert_close(found.cpu(), before.lerp(param, 0.3))


def check_nan_and_inf(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """They stay in their element, and go where PyTorch's go."""
    for settings in SETTINGS:
        for kind in ("params", "grads", "exp_avgs", "exp_avg_sqs", "averages"):
            net = network([(19,), (4, 3, 4, 4)], dtype, generator)
            for t in getattr(net, kind):
                flat = t.view(-1)
                flat[torch.randperm(len(flat), generator=generator)[:3]] = torch.tensor(
                    [float("nan"), float("inf"), -float("inf")], dtype=dtype
                )
            check(net, settings, device=device)


def check_first_step(dtype: torch.dtype, generator: torch.Generator, device: str = "cpu") -> None:
    """Kingma & Ba 2015, section 2.1: with bias corrected, the first step is lr sign(g), however large the gradient is."""
    net = network([(50, 30)], dtype, generator)
    for moment in (*net.exp_avgs, *net.exp_avg_sqs):
        moment.zero_()
    net.steps[0].fill_(1)
    net.grads[0].mul_(torch.logspace(-3, 6, 30, dtype=dtype))
    after = net.like(device=device)
    step(adam_, after, (0.9, 0.999, 1e-12))
    moved = after.params[0].cpu() - net.params[0]
    # |g| above 1e-7 here, so eps is below one part in 1e5; the rest is rounding of parameters of size one
    torch.testing.assert_close(moved, -0.01 * net.grads[0].sign(), rtol=1e-4, atol=1e-6)


REFUSED: dict[str, Callable[[Network], object]] = {
    "lists of unequal length": lambda net: net.grads.pop(),
    "averages for some": lambda net: net.averages.pop(),
    "a gradient of another shape": lambda net: net.grads.__setitem__(0, torch.zeros(3)),
    "a gradient of another dtype": lambda net: net.grads.__setitem__(0, net.grads[0].bfloat16()),
    "a moment of another dtype": lambda net: net.exp_avgs.__setitem__(0, net.exp_avgs[0].double()),
}


def check_refusal(name: str, generator: torch.Generator) -> None:
    net = network([(4, 5), (3,)], torch.float32, generator)
    REFUSED[name](net)
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        step(adam_, net, SETTINGS[0])


def check_gaps_and_strides_are_refused(generator: torch.Generator) -> None:
    """By kernels, which go through memory in its order."""
    net = network([(4, 5)], torch.float32, generator)
    net.exp_avgs[0] = net.exp_avgs[0].t().contiguous().t()
    with pytest.raises(RuntimeError, match="strides"):
        step(adam_, net, SETTINGS[0])


CHECKS: dict[str, Callable[..., None]] = {
    "layouts": check_layouts,
    "sizes": check_sizes,
    "found_inf": check_found_inf,
    "NaN and Inf": check_nan_and_inf,
    "the first step": check_first_step,
}
