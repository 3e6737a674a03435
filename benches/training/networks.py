"""The networks of the benched recipes in PyTorch's own modules, their parameters under the names that ganfast's have.

Written for speed as a careful user would: activations in place where nothing else needs what they overwrite, a 1 x 1 shortcut on
the smaller of the two maps. Sizes are powers of two.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ganfast.benches.plain import ConvMeanPool, UpsampleConv
from ganfast.nn import to_torch_state_dict
from ganfast.recipe import Recipe

BASE = 4  # pixels of the smallest map


def pair(recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """Generator and critic of ``recipe``'s architecture, with copies of its weights. For dcgan, and for ResNets."""
    options: Any = recipe.options
    size, channels, width, latent_dim = (options[name] for name in ("image_size", "channels", "width", "latent_dim"))
    doublings = (size // BASE).bit_length() - 1
    networks: tuple[nn.Module, nn.Module]
    if recipe.name == "dcgan":
        networks = DCGANGenerator(channels, doublings, width, latent_dim), DCGANCritic(channels, doublings, width)
    elif recipe.name == "wgan-gp":
        networks = ResNetGenerator(channels, doublings, width, latent_dim), ResNetCritic(channels, doublings, width)
    else:
        networks = (
            ResNetGenerator(channels, doublings, 2 * width, latent_dim),
            ResNetCritic(channels, doublings, width, sums=True),
        )
        for layer in networks[1].modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)
    for network, name in zip(networks, "GD", strict=True):
        network.load_state_dict(to_torch_state_dict(recipe.networks[name].state_dict()))
    return networks


class DCGANGenerator(nn.Module):
    def __init__(self, channels: int, doublings: int, width: int, latent_dim: int) -> None:
        super().__init__()
        widths = [width * min(8, 2**i) for i in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent_dim, widths[0], BASE, bias=False)]
        for inputs, outputs in pairwise(widths):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class DCGANCritic(nn.Module):
    def __init__(self, channels: int, doublings: int, width: int) -> None:
        super().__init__()
        widths = [width * min(8, 2**i) for i in range(doublings)]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2, inplace=True)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(widths[-1], 1, BASE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)).flatten()


class UpBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = UpsampleConv(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(h), inplace=True)) + F.interpolate(self.shortcut(x), scale_factor=2)


class ResNetGenerator(nn.Module):
    def __init__(self, channels: int, doublings: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(latent_dim, width * BASE * BASE)
        self.blocks = nn.Sequential(*(UpBlock(width) for _ in range(doublings)))
        last = nn.Conv2d(width, channels, 3, padding=1)
        self.output = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), last, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.output(self.blocks(self.dense(z).unflatten(1, (-1, BASE, BASE))))


class DownBlock(nn.Module):
    """Of a critic; halves the map where ``down``. The ``first`` one sees pixels, which no ReLU comes before."""

    def __init__(self, inputs: int, width: int, *, down: bool, first: bool = False) -> None:
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.conv2 = (ConvMeanPool if down else nn.Conv2d)(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, width, 1) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x)), inplace=True))
        return h + self.shortcut(F.avg_pool2d(x, 2) if self.down else x)


class ResNetCritic(nn.Module):
    def __init__(self, channels: int, doublings: int, width: int, *, sums: bool = False) -> None:
        super().__init__()
        blocks = [DownBlock(channels, width, down=True, first=True)]
        blocks += [DownBlock(width, width, down=True) for _ in range(doublings - 2)]
        blocks += [DownBlock(width, width, down=False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 1)
        self.sums = sums

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.blocks(x))
        return self.head(h.sum((2, 3)) if self.sums else h.mean((2, 3))).flatten()
