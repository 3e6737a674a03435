"""The convolutional pair of Radford et al. 2016: strided and transposed 4x4 convolutions, no pooling, no hidden dense layers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ganfast.models.critic import FeatureCritic
from ganfast.models.mlp import scores
from ganfast.models.shape import SampleShape
from ganfast.nn.conv import Conv2d, ConvTranspose2d
from ganfast.nn.norm import normalise


class Generator(nn.Module):
    """``z`` (N, latent_dim) -> images (N, C, S, S) in [-1, 1].

    ``z`` is projected to a base x base map, which transposed convolutions double ``k`` times; every layer but the last has
    batch norm and ReLU, the last tanh. ``width`` is the number of channels at half the final size; it doubles at each halving
    below, up to 8x.
    """

    def __init__(self, shape: SampleShape, latent_dim: int, width: int) -> None:
        super().__init__()
        base, k = shape.doublings()
        channels = [width * min(8, 2**i) for i in range(k - 1, -1, -1)]
        layers: list[nn.Module] = [
            ConvTranspose2d(latent_dim, channels[0], base, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        ]
        for inputs, outputs in pairwise(channels):
            layers += [ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [ConvTranspose2d(width, shape.channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Critic(FeatureCritic):
    """Images (N, C, S, S) -> scores (N,), or logits (N, outputs).

    Strided convolutions down to the base map, LeakyReLU 0.2, then one convolution over the whole map. ``norm`` is ``"batch"``
    (the paper's; never on the first layer), ``"layer"`` or ``"none"`` (for penalised and spectrally normalised critics).
    """

    def __init__(self, shape: SampleShape, width: int, *, norm: str = "batch", outputs: int = 1) -> None:
        super().__init__()
        base, k = shape.doublings()
        channels = [width * min(8, 2**i) for i in range(k)]
        layers: list[nn.Module] = [Conv2d(shape.channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for inputs, units in pairwise(channels):
            layers += [
                Conv2d(inputs, units, 4, 2, 1, bias=norm != "batch"),
                *normalise(norm, units),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.trunk = nn.Sequential(*layers)
        self.head = Conv2d(channels[-1], outputs, base)
        self.feature_dim = channels[-1] * base * base

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(x)

    def judge(self, features: Tensor) -> Tensor:
        return scores(self.head(features).flatten(1))


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch norm scales N(1, 0.02), zero biases: the paper's weights, and the scales of its authors' code."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)
