"""Residual generator and critic (Gulrajani et al. 2017, appendix F; Miyato et al. 2018, tables 4 to 6)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.models.critic import FeatureCritic
from ganfast.models.mlp import scores
from ganfast.models.shape import SampleShape
from ganfast.nn.conv import Conv2d
from ganfast.nn.norm import normalise
from ganfast.nn.resample import ConvMeanPool2d, UpsampleConv2d


class UpBlock(nn.Module):
    """BN-ReLU-upsample-conv-BN-ReLU-conv beside an upsampled 1x1 shortcut: (N, C, s, s) -> (N, width, 2s, 2s)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = UpsampleConv2d(inputs, width)
        self.conv2 = Conv2d(width, width, 3, padding=1)
        self.shortcut = Conv2d(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        # A 1x1 convolution commutes with nearest upsampling; a quarter of the work this way round.
        return self.conv2(F.relu(self.norm2(h))) + F.interpolate(self.shortcut(x), scale_factor=2)


class CriticBlock(nn.Module):
    """(norm)-ReLU-conv-(norm)-ReLU-conv beside a shortcut, mean-pooled where ``down``.

    The ``first`` block sees pixels: no ReLU before.
    """

    def __init__(self, inputs: int, width: int, *, down: bool, first: bool = False, norm: str = "none") -> None:
        super().__init__()
        self.norm1 = nn.Sequential(*([] if first else [*normalise(norm, inputs), nn.ReLU()]))
        self.norm2 = nn.Sequential(*normalise(norm, width), nn.ReLU(inplace=True))
        self.conv1 = Conv2d(inputs, width, 3, padding=1)
        self.conv2 = ConvMeanPool2d(width, width) if down else Conv2d(width, width, 3, padding=1)
        self.shortcut = Conv2d(inputs, width, 1) if down or inputs != width else nn.Identity()
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        # Pooling before the 1x1 shortcut equals pooling after it.
        return h + self.shortcut(self.pool(x))


class Generator(nn.Module):
    """``z`` (N, latent_dim) -> images (N, C, S, S) in [-1, 1]: a dense layer to the base map, one up-block per doubling."""

    def __init__(self, shape: SampleShape, latent_dim: int, width: int) -> None:
        super().__init__()
        self.base, k = shape.doublings()
        self.dense = nn.Linear(latent_dim, width * self.base * self.base)
        self.blocks = nn.Sequential(*(UpBlock(width, width) for _ in range(k)))
        self.output = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), Conv2d(width, shape.channels, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.dense(z).unflatten(1, (-1, self.base, self.base))))


class Critic(FeatureCritic):
    """Images (N, C, S, S) -> scores (N,).

    Blocks halve the map until it is 8 or smaller, two more keep it, then ReLU, a pool over positions (``"mean"`` in Gulrajani
    et al., ``"sum"`` in Miyato et al.) and one linear output.
    """

    def __init__(self, shape: SampleShape, width: int, *, norm: str = "none", pool: str = "mean") -> None:
        super().__init__()
        shape.doublings()
        halvings = max(1, math.ceil(math.log2(shape.size / 8)))
        blocks = [CriticBlock(shape.channels, width, down=True, first=True, norm=norm)]
        blocks += [CriticBlock(width, width, down=True, norm=norm) for _ in range(halvings - 1)]
        blocks += [CriticBlock(width, width, down=False, norm=norm) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 1)
        self.pool = pool
        self.feature_dim = width

    def features(self, x: Tensor) -> Tensor:
        h = F.relu(self.blocks(x))
        return h.sum((2, 3)) if self.pool == "sum" else h.mean((2, 3))

    def judge(self, features: Tensor) -> Tensor:
        return scores(self.head(features))


def initialise(module: nn.Module) -> None:
    """He initialisation inside blocks, Glorot for the shortcuts and the rest, zero biases (Gulrajani et al. 2017's choice)."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if name.endswith(("conv1", "conv2")):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
