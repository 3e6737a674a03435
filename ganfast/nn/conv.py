"""Convolutions by ganfast's own kernels where they are there and faster (:mod:`ganfast.ops.convolution`), else by PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from ganfast.ops.convolution import bent, convolution, rounds, serves


class Conv2d(nn.Conv2d):
    """``nn.Conv2d``, with the same arguments, parameters and results."""

    def forward(self, input: Tensor) -> Tensor:
        return convolve(self, input, self.weight, self.bias)


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``, with the same arguments, parameters and results."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return super().forward(input, output_size)
        return convolve(self, input, self.weight, self.bias)


_FORWARDS = {
    *(each.forward for each in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    Conv2d.forward,
    ConvTranspose2d.forward,
}
_INNER = {each._conv_forward for each in (_ConvNd, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def known(conv: Any) -> bool:
    """Whether the forward of ``conv`` is one of PyTorch's convolutions and nothing else."""
    return type(conv).forward in _FORWARDS and _convolves(conv)


def _convolves(conv: Any) -> bool:
    """Whether nobody replaced what forward calls: to standardise the weight, say, or to pad in a way of its own."""
    return type(conv)._conv_forward in _INNER and "_conv_forward" not in conv.__dict__


def plain(conv: Any) -> bool:
    """Whether the op knows its geometry: two dimensions, no groups, no dilation, one stride and one padding."""
    one = all(isinstance(sizes, tuple) and len(sizes) == 2 and sizes[0] == sizes[1] for sizes in (conv.stride, conv.padding))
    return one and conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not any(conv.output_padding)


def convolve(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slope: float = 1.0) -> Tensor:
    """What ``conv`` makes of x with this weight and bias, and LeakyReLU of that.

    The weight is handed in, read once for all: reading a parametrised one may change it.
    """
    if plain(conv) and _convolves(conv):
        y = by_op(x, weight, bias, conv.stride[0], conv.padding[0], conv.transposed, slope)
        if y is not None:
            return y
    if conv.transposed:
        transposed = _TRANSPOSED[len(conv.kernel_size)]
        y = transposed(x, weight, bias, conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
    else:
        y = conv._conv_forward(x, weight, bias)
    return bent(y, slope)


def by_op(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool, slope: float = 1.0
) -> Tensor | None:
    """The convolution by the op, cast as autocast would, or None where the op has no kernel or PyTorch's transforms look on."""
    if type(x) not in (Tensor, nn.Parameter) or watched():
        return None
    dtype = lowered(x)
    mixed = dtype is None and bias is not None and bias.dtype != weight.dtype  # which PyTorch refuses
    if mixed or not serves(x, weight, stride, padding, transposed, dtype):
        return None
    if dtype is not None:
        x, weight = x.to(dtype), weight if rounds(x, weight) else weight.to(dtype)
    return convolution(x, weight, bias, stride, padding, 0 if transposed else None, slope)


def lowered(x: Tensor) -> torch.dtype | None:
    """What autocast, where it is on, casts x to for a convolution."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)
    on = known and torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which it leaves as it is
    return torch.get_autocast_dtype(kind) if on else None


def watched() -> bool:
    """Whether what runs is transformed or recorded, which is for PyTorch's own operations."""
    transforming = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transforming or torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()
