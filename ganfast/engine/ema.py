"""Moving averages of networks: copies that follow the trained weights and make the samples."""

from __future__ import annotations

import copy

import torch
from torch import nn


class MovingAverage:
    """``module`` is a frozen copy in evaluation mode; :meth:`update` moves it towards ``source`` by ``1 - decay``.

    Early on the decay is held down to (1 + step) / (10 + step), so that the random start is forgotten. Batch norm's running
    statistics are averaged as the weights are: they belong to the weights of the same moment.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.source, self.decay = source, decay
        self.module = copy.deepcopy(source).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = [], []
        pairs = zip(
            [*self.module.parameters(), *self.module.buffers()], [*self.source.parameters(), *self.source.buffers()], strict=True
        )
        for mine, current in pairs:
            if mine.is_floating_point():
                ours.append(mine)
                theirs.append(current)
            else:
                mine.copy_(current)
        torch._foreach_lerp_(ours, theirs, 1 - decay)
