"""The standard CNN pair of Miyato et al. 2018, table 3: 3x3 convolutions between strided 4x4 ones."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ganfast.models.critic import FeatureCritic
from ganfast.models.mlp import scores
from ganfast.models.shape import SampleShape
from ganfast.nn.conv import Conv2d, ConvTranspose2d


class Generator(nn.Module):
    """``z`` (N, latent_dim) -> images (N, C, S, S) in [-1, 1].

    Dense, then transposed convolutions with batch norm and ReLU, 3x3 to pixels.

    ``width`` is the number of channels at full size (64 in the paper); it doubles at each halving, up to 8x.
    """

    def __init__(self, shape: SampleShape, latent_dim: int, width: int) -> None:
        super().__init__()
        self.base, k = shape.doublings()
        channels = [width * min(8, 2**i) for i in range(k, -1, -1)]
        self.dense = nn.Linear(latent_dim, channels[0] * self.base * self.base)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [Conv2d(width, shape.channels, 3, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.dense(z).unflatten(1, (-1, self.base, self.base)))


class Critic(FeatureCritic):
    """Images (N, C, S, S) -> scores (N,): a 3x3 and a strided 4x4 convolution per halving, LeakyReLU 0.1, one dense output."""

    def __init__(self, shape: SampleShape, width: int) -> None:
        super().__init__()
        base, k = shape.doublings()
        channels = [width * min(8, 2**i) for i in range(k + 1)]
        layers: list[nn.Module] = []
        inputs = shape.channels
        for units in channels[:-1]:
            layers += [
                Conv2d(inputs, units, 3, padding=1),
                nn.LeakyReLU(0.1, inplace=True),
                Conv2d(units, units, 4, 2, 1),
                nn.LeakyReLU(0.1, inplace=True),
            ]
            inputs = units
        layers += [Conv2d(inputs, channels[-1], 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.feature_dim = channels[-1] * base * base
        self.head = nn.Linear(self.feature_dim, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x).flatten(1)

    def judge(self, features: Tensor) -> Tensor:
        return scores(self.head(features))
