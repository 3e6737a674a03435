"""The resizes that scores of images are defined with. They differ more than the digits that papers print (Parmar et al. 2022).

Each takes uint8 pixels (n, C, H, W) and gives (n, C, size, size) in float32, still in 0..255 and not rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def tensorflow_bilinear(pixels: Tensor, size: int) -> Tensor:
    """TensorFlow 1's ``resize_bilinear``: pixel i of the output lies at i * H / size of the input, no half pixel added.

    Neighbours are mixed without antialiasing, along a row first, in the order of TensorFlow's kernel: bit for bit.
    """
    images = pixels.float()
    for axis in (3, 2):
        length = images.shape[axis]
        where = torch.arange(size, dtype=torch.float32, device=images.device) * torch.tensor(length / size)
        lower = where.long()
        upper = (lower + 1).clamp(max=length - 1)
        share = (where - lower).view(-1, *([1] * (3 - axis)))
        images, next_ones = images.index_select(axis, lower), images.index_select(axis, upper)
        images = images + (next_ones - images) * share
    return images


def bilinear(pixels: Tensor, size: int) -> Tensor:
    """PyTorch's: pixel centres, neighbours mixed without antialiasing."""
    return interpolate(pixels.float(), (size, size), mode="bilinear", align_corners=False)


def bilinear_antialiased(pixels: Tensor, size: int) -> Tensor:
    """PyTorch's with ``antialias``: where the image shrinks, the triangle is as wide as the step."""
    return interpolate(pixels.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)


def bicubic_antialiased(pixels: Tensor, size: int) -> Tensor:
    """Pillow's bicubic of each channel in floats, clipped to 0..255.

    PyTorch's has the same taps (a = -0.5, widened where the image shrinks, normalised at the edges). In float64, in which Pillow
    sums, it differs by 2e-5 of 255; in float32 it would be 6e-3.
    """
    images = interpolate(pixels.double(), (size, size), mode="bicubic", align_corners=False, antialias=True)
    return images.clamp(0, 255).float()
