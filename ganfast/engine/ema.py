"""Moving averages of networks: copies that follow the trained weights and make the samples."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ganfast.optim import Adam


class MovingAverage:
    """``module`` is a frozen copy in evaluation mode; :meth:`update` moves it towards ``source`` by ``1 - decay``.

    Early on the decay is held down to (1 + step) / (10 + step), so that the random start is forgotten. Batch norm's running
    statistics are averaged as the weights are: they belong to the weights of the same moment.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.source, self.decay = source, decay
        self.module = copy.deepcopy(source).eval().requires_grad_(False)
        self._left: dict[Tensor, Tensor] | None = None
        # read where it lies, so that a recorded iteration finds it changed
        self._pull = torch.zeros((), dtype=torch.float64, device=next(source.parameters()).device)

    def prepare(self, step: int) -> None:
        """Say which iteration it is that the next :meth:`update` belongs to."""
        self._pull.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    def ride(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the next step of ``optimizer`` move the weights' averages as it moves the weights, where it can do that.

        For the last one before :meth:`update`, which moves whatever was left.
        """
        self._left = self._weights()
        if isinstance(optimizer, Adam):
            optimizer.follow(self._left, self._pull)

    @torch.no_grad()
    def update(self) -> None:
        left = self._weights() if self._left is None else self._left
        theirs, ours = list(left), list(left.values())
        for mine, current in zip(self.module.buffers(), self.source.buffers(), strict=True):
            if mine.is_floating_point():
                ours.append(mine)
                theirs.append(current)
            else:
                mine.copy_(current)
        if ours:
            away = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(away, self._pull)
            torch._foreach_add_(ours, away)
        left.clear()  # an optimizer that skipped its step holds it still
        self._left = None

    def _weights(self) -> dict[Tensor, Tensor]:
        return dict(zip(self.source.parameters(), self.module.parameters(), strict=True))
