"""What a gradient penalty costs as batch, channels and depth of a critic grow: 3 x 3 convolutions at 16 x 16 pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from ganfast.benches.harness import Case
from ganfast.benches.ops.gradient_penalty import case, double_backward, images
from ganfast.penalties import gradient_penalty

BASE = {"batch": 32, "channels": 64, "depth": 4}
CURVES = {"batch": (1, 4, 16, 64, 128), "channels": (8, 16, 32, 64, 128), "depth": (1, 2, 4, 8, 16)}


def cases(device: torch.device) -> Iterator[Case]:
    for axis, values in CURVES.items():
        for value in values:
            size = BASE | {axis: value}
            torch.manual_seed(0)
            made = critic(size["channels"], size["depth"]).to(device)
            losses = {"torch": double_backward, "ganfast": gradient_penalty}
            yield case("gradient_penalty", f"{axis}={value}", losses, made, images(size["batch"], 16, device))


def critic(channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in [3] + [channels] * (depth - 1):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.AvgPool2d(16), nn.Flatten(), nn.Linear(channels, 1))
