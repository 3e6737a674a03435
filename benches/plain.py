"""What stock PyTorch is timed with: ganfast's own networks with every layer of ganfast's as PyTorch would have it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.nn.conv import Conv2d, ConvTranspose2d
from ganfast.nn.resample import ConvMeanPool2d, UpsampleConv2d

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ConvMeanPool(nn.Conv2d):
    """A convolution of 3 x 3 and the mean of 2 x 2 pixels behind it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(input), 2)


class UpsampleConv(nn.Conv2d):
    """Pixels doubled, and a convolution of 3 x 3 behind that."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.interpolate(input, scale_factor=2))


_PLAIN: dict[type[nn.Module], Any] = {
    Conv2d: nn.Conv2d,
    ConvTranspose2d: nn.ConvTranspose2d,
    ConvMeanPool2d: ConvMeanPool,
    UpsampleConv2d: UpsampleConv,
}


def plain(network: ModuleT) -> ModuleT:
    """A copy of ``network``, which was not fused, without anything of ganfast's that computes."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
    return copied
