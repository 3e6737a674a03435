"""Triton kernel of the page ganfast/ops/gather_images.py. Each program reads and writes BLOCK neighbouring elements of y.

y[i, c, h, w] = data[rows[i], h, w or W - 1 - w, c] / 127.5 - 1. Bytes that must move: one read and four written an element.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def gather_images_kernel(
    data_ptr,
    rows_ptr,
    mirrored_ptr,
    y_ptr,
    total,
    HEIGHT,
    WIDTH,
    CHANNELS,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < total
    size = HEIGHT * WIDTH * CHANNELS
    image, within = place // size, (place % size).to(tl.int32)
    if CHANNELS_LAST:
        channel, pixel = within % CHANNELS, within // CHANNELS
    else:
        channel, pixel = within // (HEIGHT * WIDTH), within % (HEIGHT * WIDTH)
    line, column = pixel // WIDTH, pixel % WIDTH
    row = tl.load(rows_ptr + image, mask=there, other=0)
    mirrored = tl.load(mirrored_ptr + image, mask=there, other=0)
    column = tl.where(mirrored != 0, WIDTH - 1 - column, column)
    byte = tl.load(data_ptr + row * size + (line * WIDTH + column) * CHANNELS + channel, mask=there, other=0)
    tl.store(y_ptr + place, tl.div_rn(byte.to(tl.float32), 127.5) - 1.0, mask=there)


def gather_images(data: Tensor, rows: Tensor, mirrored: Tensor, channels_last: bool) -> Tensor:
    _, height, width, channels = data.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((len(rows), channels, height, width), device=data.device).contiguous(memory_format=layout)
    if y.numel():
        grid = (triton.cdiv(y.numel(), BLOCK),)
        gather_images_kernel[grid](
            data.contiguous(),
            rows.contiguous(),
            mirrored.contiguous().view(torch.uint8),
            y,
            y.numel(),
            height,
            width,
            channels,
            CHANNELS_LAST=channels_last,
            BLOCK=BLOCK,
        )
    return y
