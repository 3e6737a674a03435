r"""A 3 x 3 convolution and the halving behind it, or the doubling before it, as one convolution of 4 x 4 with stride 2.

The mean over 2 x 2 pixels of a convolution is a convolution with the mean of the weight moved by 0 or 1 in each axis, and a
convolution of a map whose pixels were doubled meets every pixel with one sum of the weight's taps out of four (Gulrajani et al.
2017 wrote both layers as two). With W (C_out, C_in, 3, 3), W[t] zero for t outside of 0, 1, 2, in each of the two axes:

    mean pool after:       y[i] = b + sum over s of K[s] x[2 i - 1 + s],        K[s] = (W[s - 1] + W[s]) / 2
    nearest doubling before: y[2 i - 1 + s] += K[s] x[i], from b on,            K[s] = W[2 - s] + W[3 - s],    s = 0, 1, 2, 3

The second is a transposed convolution. 16 products where there were 36. Both are exact at borders: padding 1 of 4 x 4 reaches
over the edge as far as padding 1 of 3 x 3 does from the outer pixel of a pair, and zeros beside a doubled map are the pixels
that a transposed convolution cuts off. An odd map's last row and column are left out of the mean, as ``nn.AvgPool2d`` does.

The parameters stay W and b. K is made of W by operations that autograd follows, to any order; in bfloat16 K is rounded once more,
and what comes out less.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganfast.nn.conv import by_op


def convolve_pooled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``avg_pool2d(conv2d(x, weight, bias, padding=1), 2)`` of x (N, C_in, H, W): (N, C_out, H // 2, W // 2)."""
    merged = _merged(weight, False)
    y = by_op(x, merged, bias, 2, 1, False)
    return F.conv2d(x, merged, bias, stride=2, padding=1) if y is None else y


def convolve_upsampled(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv2d(interpolate(x, scale_factor=2), weight, bias, padding=1)`` of x (N, C_in, H, W): (N, C_out, 2 H, 2 W)."""
    merged = _merged(weight, True)
    y = by_op(x, merged, bias, 2, 1, True)
    return F.conv_transpose2d(x, merged, bias, stride=2, padding=1) if y is None else y


def _merged(weight: Tensor, transposed: bool) -> Tensor:
    """K (C_out, C_in, 4, 4), or (C_in, C_out, 4, 4) of a transposed convolution, laid out as W (C_out, C_in, 3, 3) is."""
    layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
    taps = weight.flip(2, 3).transpose(0, 1) if transposed else weight
    # channels last, sums run over the channels, and not over 3 x 3 numbers at a time: 4 times as fast on a CPU
    taps = taps.contiguous(memory_format=torch.channels_last)
    sums = F.avg_pool2d(taps, 2, stride=1, padding=1, divisor_override=1 if transposed else 4)
    return sums.contiguous(memory_format=layout)


class _Conv3x3(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)


class ConvMeanPool2d(_Conv3x3):
    """``nn.Conv2d(in_channels, out_channels, 3, padding=1)`` and ``nn.AvgPool2d(2)`` behind it, as one."""

    def forward(self, input: Tensor) -> Tensor:
        return convolve_pooled(input, self.weight, self.bias)


class UpsampleConv2d(_Conv3x3):
    """``nn.Conv2d(in_channels, out_channels, 3, padding=1)`` and ``nn.Upsample(scale_factor=2)`` before it, as one."""

    def forward(self, input: Tensor) -> Tensor:
        return convolve_upsampled(input, self.weight, self.bias)
