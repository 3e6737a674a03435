"""A 3 x 3 convolution with the mean pool behind it or the doubling before it, forward and backward: as two layers, and as one.

The layers are those of the ResNet-32 critic (128 channels) and of SNGAN's ResNet-32 generator (256). Stock is two layers in the
contiguous layout and with channels last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.nn.resample import convolve_pooled, convolve_upsampled

BATCH = 32
LAYOUTS = {"": torch.contiguous_format, " channels-last": torch.channels_last}


def pooled(x: Tensor, weight: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, padding=1), 2)


def upsampled(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1)


# by name: two layers, one layer; channels, and the sizes of the maps that go in
LAYERS = {
    "mean pool": (pooled, convolve_pooled, 128, (32, 16)),
    "doubling": (upsampled, convolve_upsampled, 256, (4, 8, 16)),
}


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for name, (two, one, channels, sizes) in LAYERS.items():
            for size in sizes:
                providers = {}
                for suffix, layout in LAYOUTS.items():
                    torch.manual_seed(0)
                    x = torch.randn(BATCH, channels, size, size, device=device).to(dtype).to(memory_format=layout)
                    weight = torch.randn(channels, channels, 3, 3, device=device).mul_(0.05).to(memory_format=layout)
                    for provider, layer in (("torch", two), ("ganfast", one)):
                        providers[provider + suffix] = functools.partial(step, layer, x.requires_grad_(), weight.requires_grad_())
                merged = (size // 2 if one is convolve_pooled else size) ** 2 * 16
                yield Case(
                    "resample",
                    f"{name}, {channels} channels at {size} x {size}, {str(dtype).removeprefix('torch.')}",
                    providers,
                    stock=("torch", "torch channels-last"),
                    flops=3 * 2 * BATCH * channels**2 * merged,
                    dtype=dtype,
                    device=device,
                )


def step(layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        y = layer(x, weight)
    return dict(zip(("x", "weight"), torch.autograd.grad(y, (x, weight), torch.ones_like(y)), strict=True))
