"""Between two chains: batch norm's input and its statistics in place of its activated output, which then is never made.

The convolution behind normalises and activates what it reads, and gives the statistics of what it makes
(:mod:`ganfast.ops.conv_norm`). Only where nobody else can have seen the tensor in between may it be missing: see
:mod:`ganfast.nn.chain`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ganfast.nn.conv import lowered, plain, watched
from ganfast.ops.batch_norm import batch_norm_act
from ganfast.ops.conv_norm import conv_norm, serves

Statistics = tuple[Tensor, Tensor] | None  # mean and biased var (groups, C)


class Handed(NamedTuple):
    """The input of a batch norm with ReLU or LeakyReLU behind it, and what makes their output of it."""

    x: Tensor
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    slope: float


def made(x: Any) -> Any:
    """The tensor that is meant."""
    if not isinstance(x, Handed):
        return x
    return batch_norm_act(x.x, x.weight, x.bias, len(x.mean), x.eps, x.slope, False)[0]


def convolve_between(
    conv: Any, given: Tensor | Handed, weight: Tensor, bias: Tensor | None, groups: int
) -> tuple[Tensor, Statistics] | None:
    """What a known ``conv`` makes of ``given``, and the statistics of that if there are ``groups``; None without a kernel."""
    x, *norm = given if isinstance(given, Handed) else (given, None, None, None, None, 1.0, 1.0)
    if type(x) not in (Tensor, nn.Parameter) or not plain(conv) or watched() or torch.compiler.is_compiling():
        return None
    dtype = lowered(x) or x.dtype
    if isinstance(given, Handed) and dtype != x.dtype:  # which is normalised before it is cast
        return None
    stride, padding = conv.stride[0], conv.padding[0]
    if not serves(x, weight, stride, padding, conv.transposed, lowered(x)) or (groups and x.shape[0] % groups):
        return None
    steps = conv.transposed, stride, padding
    y, *statistics = conv_norm(x.to(dtype), weight.to(dtype), bias, *norm, *steps, groups)
    return y, tuple(statistics) if groups else None
