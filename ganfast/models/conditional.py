"""A generator or critic that sees a class label beside its input, by concatenation (Mirza & Osindero 2014, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganfast.latent import one_hot


class Generator(nn.Module):
    """(``z`` (N, latent_dim), labels ``y`` (N,)) -> samples; wraps a generator of ``latent_dim + classes`` inputs."""

    def __init__(self, generator: nn.Module, classes: int) -> None:
        super().__init__()
        self.generator, self.classes = generator, classes

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.generator(torch.cat([z, one_hot(y, self.classes, z.dtype)], 1))


class Critic(nn.Module):
    """(samples, labels ``y`` (N,)) -> scores; wraps a critic of ``channels + classes`` channels.

    Each label is a constant plane.
    """

    def __init__(self, critic: nn.Module, classes: int) -> None:
        super().__init__()
        self.critic, self.classes = critic, classes

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        onehot = one_hot(y, self.classes, x.dtype)
        planes = onehot.view(*onehot.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        return self.critic(torch.cat([x, planes], 1))
