"""A network and its fused copy side by side."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.nn import fuse, fuse_report

# float64, networks of a few layers: sums of a few thousand terms keep 13 digits, and batch norm's division takes some of them
CLOSE = 1e-10


class Ops(TorchDispatchMode):
    """The names of the operations that run inside, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


def ops_of(module: nn.Module, x: Tensor) -> Ops:
    with Ops() as ops:
        copy.deepcopy(module)(x)
    return ops


def fused_paths(module: nn.Module) -> list[str]:
    return [row.path for row in fuse_report(module) if row.status == "fused"]


def assert_close(ours: Iterable[Tensor | None], theirs: Iterable[Tensor | None], tolerance: float = CLOSE) -> None:
    """Relative to the largest element of all: one that cancels carries the others' rounding."""
    pairs = list(zip(ours, theirs, strict=True))
    scale = max([1.0, *(b.abs().max().item() for _, b in pairs if b is not None and b.numel())])
    for index, (a, b) in enumerate(pairs):
        assert (a is None) == (b is None), index
        if a is not None and b is not None:
            assert a.shape == b.shape and a.dtype == b.dtype, index
            worst = (a - b).abs().max().item() if a.numel() else 0.0
            assert worst <= tolerance * scale, (index, worst, scale)


def assert_same_state(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert_close(ours.values(), theirs.values())


def assert_twins(plain: nn.Module, fused: nn.Module, x: Tensor, modes: Iterable[bool] = (True, True, False, True)) -> None:
    """Outputs, gradients and buffers agree in training and evaluation, one step after the other, with the same random numbers."""
    for step, training in enumerate(modes):
        found = []
        for module in (plain.train(training), fused.train(training)):
            torch.manual_seed(step)
            module.zero_grad()
            point = (x * (1 + step)).requires_grad_()
            y = module(point)
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
            found.append((y.detach(), [point.grad, *(p.grad for p in module.parameters())]))
        (theirs, their_grads), (ours, our_grads) = found
        assert_close([ours], [theirs])
        assert_close(our_grads, their_grads)
        assert_same_state(fused, plain)


def twins(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    plain = network.double()
    return plain, fuse(copy.deepcopy(plain))
