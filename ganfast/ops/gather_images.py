r"""A batch of training images in one pass: gathered, mirrored, and scaled from bytes to [-1, 1].

    y[i, c, h, w] = data[rows[i], h, w', c] / 127.5 - 1,    w' = W - 1 - w where mirrored[i], else w

``data`` (N, H, W, C) uint8, ``rows`` (n,) int64 in [0, N), ``mirrored`` (n,) bool; y (n, C, H, W) float32, channels last in
memory or contiguous. All on one device, where the data live; rows out of range are not looked for. Bytes have no gradient.

Bytes that must move: 5 n C H W. For data on the host :mod:`ganfast.data.host` does the same, bit for bit.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from ganfast.ops import library


def gather_images_reference(data: Tensor, rows: Tensor, mirrored: Tensor, channels_last: bool) -> Tensor:
    pixels = data.index_select(0, rows)
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
    # by a tensor, because CUDA turns division by a number into a multiplication, which rounds apart
    scaled = pixels.float().div_(torch.full((), 127.5, device=data.device)).sub_(1).permute(0, 3, 1, 2)
    return scaled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _fake(data: Tensor, rows: Tensor, mirrored: Tensor, channels_last: bool) -> Tensor:
    _, height, width, channels = data.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (rows.shape[0], channels, height, width)
    return torch.empty(shape, dtype=torch.float32, device=data.device, memory_format=layout)


gather_images = library.register(
    "gather_images(Tensor data, Tensor rows, Tensor mirrored, bool channels_last) -> Tensor",
    reference=gather_images_reference,
    fake=_fake,
    on_cuda=importlib.import_module("ganfast.kernels.gather_images").gather_images if library.TRITON else None,
)
