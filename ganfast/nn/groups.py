"""Several batches in one, each with the statistics that it would have alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganfast.errors import InvalidValue


@contextlib.contextmanager
def statistics_groups(module: nn.Module, groups: int) -> Iterator[None]:
    """Within it, batch norms in ``module`` take a batch as ``groups`` batches of consecutive samples, one after the other.

    Real and generated samples in one batch then are normalised as by two calls, and running statistics are updated twice. Where
    :func:`ganfast.fuse` has been, a chain does it in one pass; elsewhere a batch norm is called part by part. A batch that the
    groups do not divide raises InvalidValue.
    """
    if groups < 1:
        raise InvalidValue(f"expected at least one group of statistics, got {groups}")
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [norm.__dict__.get("forward") for norm in norms]
    try:
        for norm, had in zip(norms, before, strict=True):
            norm.__dict__["forward"] = Grouped(norm, groups, had.inner if isinstance(had, Grouped) else had)
        yield
    finally:
        for norm, had in zip(norms, before, strict=True):
            del norm.__dict__["forward"]
            if had is not None:
                norm.__dict__["forward"] = had


def in_one_batch(network: nn.Module, *inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``network(*each)`` for each of ``inputs``, batches of one size, by a single call: half the calls, and half the reading of
    weights, of two.

    Batch norms keep the statistics of each, one after the other. What else looks at more than one sample sees them all. Raises
    InvalidValue for batches of several sizes.
    """
    sizes = [len(tensor) for each in inputs for tensor in each]
    if len(set(sizes)) != 1:
        raise InvalidValue(f"expected batches of one size, got {', '.join(map(str, sizes))}")
    with statistics_groups(network, len(inputs)):
        found = network(*map(torch.cat, zip(*inputs, strict=True))).unflatten(0, (len(inputs), -1))
    return tuple(part.clone() for part in found)  # what comes of one call may be written into


class Grouped:
    """The forward of a batch norm, part by part. ``inner`` is a forward that stood in the class's place before."""

    def __init__(self, norm: _BatchNorm, groups: int, inner: Callable[[Tensor], Tensor] | None) -> None:
        self.groups, self.inner = groups, inner
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        forward: Any = self.inner or type(self._norm).forward.__get__(self._norm)
        if not measures(self._norm):
            return forward(x)
        if x.shape[0] % self.groups:
            raise InvalidValue(f"expected a batch that {self.groups} groups of statistics divide, got {x.shape[0]}")
        return torch.cat([forward(part) for part in x.chunk(self.groups)])


def groups_of(norm: _BatchNorm) -> int:
    forward = norm.forward  # looked up as a call would, which torch.compile guards
    return forward.groups if isinstance(forward, Grouped) else 1


def measures(norm: _BatchNorm) -> bool:
    """Whether the statistics are the batch's: in training, and where none are kept."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)
