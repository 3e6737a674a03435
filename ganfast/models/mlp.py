"""Fully connected generator and critic, for images and for points (Goodfellow et al. 2014)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ganfast.models.critic import FeatureCritic
from ganfast.models.shape import SampleShape


class Maxout(nn.Module):
    """The largest of ``pieces`` affine maps per unit: (N, inputs) -> (N, units) (Goodfellow et al. 2013, eq. 1)."""

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units * pieces)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (self.units, -1)).amax(2)


class Generator(nn.Module):
    """``z`` (N, latent_dim) -> samples, by ReLU layers; images end in tanh, points are unbounded."""

    def __init__(self, shape: SampleShape, latent_dim: int, width: int, depth: int = 2) -> None:
        super().__init__()
        widths = [latent_dim] + [width] * depth
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers += [nn.Linear(width, shape.numel)]
        if shape.size:
            layers += [nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.dims = shape.dims

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z).unflatten(1, self.dims)


class Critic(FeatureCritic):
    """Samples -> scores (N,), by LeakyReLU 0.2 layers."""

    def __init__(self, shape: SampleShape, width: int, depth: int = 2, *, outputs: int = 1) -> None:
        super().__init__()
        widths = [shape.numel] + [width] * depth
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, units in pairwise(widths):
            layers += [nn.Linear(inputs, units), nn.LeakyReLU(0.2, inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)
        self.feature_dim = width

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def judge(self, features: Tensor) -> Tensor:
        return scores(self.head(features))


class MaxoutCritic(nn.Module):
    """The discriminator of Goodfellow et al. 2014.

    Two maxout layers of five pieces, dropout on the input (0.2) and before each layer (0.5).
    """

    def __init__(self, shape: SampleShape, width: int = 240, pieces: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.2),
            Maxout(shape.numel, width, pieces),
            nn.Dropout(0.5),
            Maxout(width, width, pieces),
            nn.Dropout(0.5),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return scores(self.layers(x))


def scores(head: Tensor) -> Tensor:
    """A head's outputs (N, 1) as scores (N,), several outputs as (N, K); in float32 at least, whatever autocast chose."""
    head = head.to(torch.promote_types(head.dtype, torch.float32))
    return head.squeeze(1) if head.shape[1] == 1 else head


def initialise(module: nn.Module) -> None:
    """He initialisation, zero biases (He et al. 2015, eq. 10): as in the toy experiments of Gulrajani et al. 2017."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
