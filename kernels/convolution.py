"""Convolutions in Triton: the three products of the page ganfast/ops/convolution.py, and what stands before and behind them on
the page ganfast/ops/conv_norm.py.

All are matrix products whose rows are read where they lie, channels last, so that the channels of a pixel are a run of memory:

    spread_product    rows are pixels of the output, columns its channels; sums go over taps and channels of the input
    pair_product      rows are channels of the small map, columns those of the big one at one tap; sums go over pixels

A transposed convolution of stride s is s^2 convolutions, a phase for each remainder of an output pixel's place: only every s-th
tap reaches it, and no zero is ever multiplied. A convolution is one phase.

``mean_ptr`` and what comes with it says that one of the maps is z = (x - mean) scale + bias, activated: the input, as it is read
(zero beyond its border); or where there is a ``before_ptr``, what this output is a gradient of.

Channels in plenty are multiplied by tensor cores. Where one side has no more than 4 (images, the scores of a critic), products of
single numbers are summed in registers, DOT being off: in tiles of 16 most would be zeros. Factors are float32, bfloat16 or
float16; sums are float32, in a fixed order and without atomics, so that a run gives the same bits again. Offsets are int64.

Written for H100 and H200, and never run on a GPU yet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_norm import _activated, _affine, _backwards, _bits, _device, _expect, _float64, _widened

FEW = 4  # channels that make no tile for a tensor core
AREA = 4096  # numbers that a program sums up in registers without tensor cores
PROCESSORS = 132  # of an H100 or H200: tiles are made smaller until each has one

SIZES = ["eps_bits", "slope_bits", "each", "in_height", "in_width", "out_height", "out_width"]  # no kernel of its own for each
SIZES += ["small_height", "small_width", "big_height", "big_width", "pieces", "span"]

FACTORS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


# ---- pixels


@triton.jit
def _outputs(phase, size, PHASES: tl.constexpr):
    """Along an axis, how many outputs a phase has."""
    return tl.cdiv(size - phase, PHASES)


@triton.jit
def _taps(phase, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Along an axis, the first tap that reaches the outputs of a phase, how many do, and where the first output reads with it."""
    if TRANSPOSED:
        tap = (phase + PADDING) % STRIDE
        return tap, tl.cdiv(KERNEL - tap, STRIDE), (phase + PADDING - tap) // STRIDE
    else:
        return phase, KERNEL + phase, phase - PADDING


@triton.jit
def _accumulated(total, a, b, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """``total`` and the product of a (M, K) and b (K, N): as (M, N), or not summed up yet, (M, K, N)."""
    if DOT:
        return tl.dot(a, b, total, input_precision=PRECISION)
    else:
        return total + a[:, :, None] * b[None, :, :]


@triton.jit
def _zeros(M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, DOT: tl.constexpr):
    if DOT:
        return tl.zeros([M, N], tl.float32)
    else:
        return tl.zeros([M, K, N], tl.float32)


@triton.jit
def _summed(total, DOT: tl.constexpr):
    if DOT:
        return total
    else:
        return tl.sum(total, 1)


# ---- convolve and transposed_convolve


@triton.jit(do_not_specialize=SIZES)
def spread_product(
    x_ptr,
    filter_ptr,
    shift_ptr,
    y_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    before_ptr,
    sums_ptr,
    each,
    in_height,
    in_width,
    in_channels,
    out_height,
    out_width,
    out_channels,
    eps_bits: tl.int64,
    slope_bits: tl.int64,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y = the convolution of x with a filter, and a shift of each channel, of groups of ``each`` samples.

    ``sums_ptr`` takes two numbers for each channel of each tile: the mean of y, as it was rounded, and the sum of squared
    deviations, in float64; or with ``before_ptr``, whose norm and activation y is the gradient of, sum dz and sum dz (x - mean).

    Moves |x|, |y| and the filter, and |before|. A program makes one tile of y: BLOCK_M pixels of one group and phase, BLOCK_N
    channels. It reads the pixels of x that these see, and BLOCK_N columns of the filter.
    """
    PHASES: tl.constexpr = STRIDE if TRANSPOSED else 1
    strips = tl.cdiv(out_channels, BLOCK_N)
    down = tl.cdiv(tl.cdiv(out_height, PHASES) * tl.cdiv(out_width, PHASES) * each, BLOCK_M)
    layers = down * PHASES * PHASES
    number = tl.program_id(0)
    strip, layer, group = number % strips, number // strips % layers, (number // strips // layers).to(tl.int64)
    phase_y, phase_x = layer // PHASES % PHASES, layer % PHASES

    height, width = _outputs(phase_y, out_height, PHASES), _outputs(phase_x, out_width, PHASES)
    pixel = (layer // (PHASES * PHASES)).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = pixel // tl.maximum(width, 1)
    sample = group * each + row // tl.maximum(height, 1)
    row, column = row % tl.maximum(height, 1), pixel % tl.maximum(width, 1)
    inside = pixel < height.to(tl.int64) * width * each
    channel = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    there = channel < out_channels

    tap_y, taps_y, from_y = _taps(phase_y, KERNEL_Y, STRIDE, PADDING, TRANSPOSED)
    tap_x, taps_x, from_x = _taps(phase_x, KERNEL_X, STRIDE, PADDING, TRANSPOSED)
    blocks = tl.cdiv(in_channels, BLOCK_K)
    total = _zeros(BLOCK_M, BLOCK_N, BLOCK_K, DOT)
    for step in range(0, taps_y * taps_x * blocks):
        within = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        down_y, along_x = step // blocks // taps_x, step // blocks % taps_x
        if TRANSPOSED:
            y, x = row + from_y - down_y, column + from_x - along_x
            tap = (tap_y + down_y * STRIDE) * KERNEL_X + tap_x + along_x * STRIDE
            filter_at = (within[:, None] * (KERNEL_Y * KERNEL_X) + tap) * out_channels + channel[None, :]
        else:
            y, x = row * STRIDE + from_y + down_y, column * STRIDE + from_x + along_x
            tap = down_y * KERNEL_X + along_x
            filter_at = (channel[None, :] * (KERNEL_Y * KERNEL_X) + tap) * in_channels + within[:, None]
        seen = inside & (y >= 0) & (y < in_height) & (x >= 0) & (x < in_width)
        mask = seen[:, None] & (within < in_channels)[None, :]
        at = ((sample * in_height + y) * in_width + x) * in_channels
        a = tl.load(x_ptr + at[:, None] + within[None, :], mask, 0.0)
        if mean_ptr is not None and before_ptr is None:
            mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, within, in_channels)
            z = (a.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :]
            a = tl.where(mask, _activated(z, _float64(slope_bits).to(tl.float32), False), 0.0)
        b = tl.load(filter_ptr + filter_at, (within < in_channels)[:, None] & there[None, :], 0.0)
        total = _accumulated(total, a.to(FACTOR), b.to(FACTOR), DOT, PRECISION)

    found = _summed(total, DOT)
    if shift_ptr is not None:
        found += tl.load(shift_ptr + channel, there, 0.0).to(tl.float32)[None, :]
    rounded = found.to(y_ptr.dtype.element_ty)
    at = ((sample * out_height + row * PHASES + phase_y) * out_width + column * PHASES + phase_x) * out_channels
    mask = inside[:, None] & there[None, :]
    tl.store(y_ptr + at[:, None] + channel[None, :], rounded, mask)
    if sums_ptr is not None:
        part_ptr = sums_ptr + (group * layers + layer) * 2 * out_channels + channel
        if before_ptr is None:
            values, count = rounded.to(tl.float32), tl.maximum(tl.sum(inside.to(tl.float32), 0), 1.0)
            middle = tl.sum(tl.where(mask, values, 0.0), 0) / count
            d = tl.where(mask, values - middle[None, :], 0.0)
            off = tl.sum(d, 0) / count  # what rounding has left, where the mean is large
            d = tl.where(mask, d - off[None, :], 0.0)
            tl.store(part_ptr, middle.to(tl.float64) + off.to(tl.float64), there)
            tl.store(part_ptr + out_channels, tl.sum(d * d, 0).to(tl.float64), there)
        else:
            mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, channel, out_channels)
            before = tl.load(before_ptr + at[:, None] + channel[None, :], mask, 0.0)
            d, dz = _backwards(rounded, before, mean, scale, bias, _float64(slope_bits).to(tl.float32), False)
            dz = tl.where(mask, dz, 0.0)
            tl.store(part_ptr, tl.sum(dz, 0), there)
            tl.store(part_ptr + out_channels, tl.sum(dz * d, 0), there)


# ---- the weight's gradient


@triton.jit(do_not_specialize=SIZES)
def pair_product(
    small_ptr,
    big_ptr,
    out_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    each,
    small_height,
    small_width,
    small_channels,
    big_height,
    big_width,
    big_channels,
    pieces,
    span,
    eps_bits: tl.int64,
    slope_bits: tl.int64,
    KERNEL_Y: tl.constexpr,
    KERNEL_X: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient by the filter, of groups of ``each`` samples, whose pixels are cut into ``pieces`` of ``span``, one sum each.

    A norm is that of the convolution's input: of the small map where it is TRANSPOSED, otherwise of the big one.

    Moves |small| and |big|, as often as there are taps unless a cache has them, and the sums. A program reads ``span`` pixels:
    BLOCK_M channels of the small map, BLOCK_N of the big one as a tap sees it.
    """
    strips, TAPS = tl.cdiv(big_channels, BLOCK_N), KERNEL_Y * KERNEL_X
    down = tl.cdiv(small_channels, BLOCK_M)
    number = tl.program_id(0)
    strip, tap, above = number % strips, number // strips % TAPS, number // strips // TAPS
    low = above % down * BLOCK_M + tl.arange(0, BLOCK_M)
    high = strip * BLOCK_N + tl.arange(0, BLOCK_N)
    part = (above // down).to(tl.int64)
    group = part // pieces
    there_low, there_high = low < small_channels, high < big_channels
    first = part % pieces * span
    end = tl.minimum(first + span, each.to(tl.int64) * small_height * small_width)

    if mean_ptr is not None:
        if TRANSPOSED:
            mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, low, small_channels)
        else:
            mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, high, big_channels)
        slope = _float64(slope_bits).to(tl.float32)
    total = _zeros(BLOCK_M, BLOCK_N, BLOCK_K, DOT)
    for start in range(first, end, BLOCK_K):
        pixel = start + tl.arange(0, BLOCK_K)
        row = pixel // small_width
        sample = group * each + row // small_height
        y = row % small_height * STRIDE - PADDING + tap // KERNEL_X
        x = pixel % small_width * STRIDE - PADDING + tap % KERNEL_X
        # what the big map does not have is nothing, whatever the small one has there
        seen = (pixel < end) & (y >= 0) & (y < big_height) & (x >= 0) & (x < big_width)
        at = (group * each * small_height * small_width + pixel) * small_channels
        a = tl.load(small_ptr + at[:, None] + low[None, :], seen[:, None] & there_low[None, :], 0.0)
        at = ((sample * big_height + y) * big_width + x) * big_channels
        b = tl.load(big_ptr + at[:, None] + high[None, :], seen[:, None] & there_high[None, :], 0.0)
        if mean_ptr is not None:
            if TRANSPOSED:
                a = _activated((a.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :], slope, False)
                a = tl.where(seen[:, None], a, 0.0)
            else:
                b = _activated((b.to(tl.float32) - mean[None, :]) * scale[None, :] + bias[None, :], slope, False)
                b = tl.where(seen[:, None], b, 0.0)
        total = _accumulated(total, tl.trans(a.to(FACTOR)), b.to(FACTOR), DOT, PRECISION)

    at = ((part * small_channels + low[:, None]) * TAPS + tap) * big_channels + high[None, :]
    found = _summed(total, DOT).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + at, found, there_low[:, None] & there_high[None, :])


# ---- launches


class Norm(NamedTuple):
    """mean and var (groups, C), weight and bias (C,) or neither, in float32; eps; the slope of the activation below zero."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    slope: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.mean.contiguous(), self.var.contiguous(), *(_widened(t, torch.float32) for t in (self.weight, self.bias))

    @property
    def numbers(self) -> tuple[int, int]:
        return _bits(self.eps), _bits(self.slope)


class Spread(NamedTuple):
    """The way of a convolution from x to y, all of which, and the filter too, lie channels last."""

    kernel: tuple[int, int]
    stride: int
    padding: int
    transposed: bool

    @property
    def phases(self) -> int:
        return self.stride if self.transposed else 1

    def empty(self, x: Tensor, filter: Tensor) -> Tensor:
        """Room for y."""
        if self.transposed:
            extents = [(x.shape[i] - 1) * self.stride - 2 * self.padding + filter.shape[i] for i in (2, 3)]
        else:
            extents = [(x.shape[i] + 2 * self.padding - filter.shape[i]) // self.stride + 1 for i in (2, 3)]
        return _empty(x, (x.shape[0], filter.shape[1 if self.transposed else 0], *extents))

    @property
    def form(self) -> dict[str, Any]:
        numbers = {"KERNEL_Y": self.kernel[0], "KERNEL_X": self.kernel[1], "STRIDE": self.stride, "PADDING": self.padding}
        return numbers | {"TRANSPOSED": self.transposed}


def spread(
    how: Spread,
    x: Tensor,
    filter: Tensor,
    shift: Tensor | None,
    y: Tensor,
    groups: int = 1,
    norm: Norm | None = None,
    before: Tensor | None = None,
    sums: bool = False,
) -> tuple[Tensor | None, int]:
    """Fill ``y``, and return the sums (groups, layers, 2, C) if they are wanted, and the number of pixels a layer has at most."""
    expect_reach(how, *((x, y) if how.transposed else (y, x)))
    each, phases = x.shape[0] // groups, how.phases
    pixels = each * triton.cdiv(y.shape[2], phases) * triton.cdiv(y.shape[3], phases)
    tile = tile_of(pixels, y.shape[1], x.shape[1], groups * phases**2, x.dtype, _precision(), _aligned(x, y))
    layers = triton.cdiv(pixels, tile["BLOCK_M"]) * phases**2
    exact = torch.float64 if before is None else torch.float32
    found = y.new_empty((groups, layers, 2, y.shape[1]), dtype=exact) if sums else None
    grid = (groups * layers * triton.cdiv(y.shape[1], tile["BLOCK_N"]),)
    sizes = (each, *x.shape[2:], x.shape[1], *y.shape[2:], y.shape[1])
    tensors, numbers = ((None,) * 4, (0, 0)) if norm is None else (norm.tensors, norm.numbers)
    with _device(x):
        spread_product[grid](x, filter, shift, y, *tensors, before, found, *sizes, *numbers, **how.form, **tile)
    return found, tile["BLOCK_M"]


def pair(how: Spread, small: Tensor, big: Tensor, norm: Norm | None = None) -> Tensor:
    """The gradient by the filter."""
    expect_reach(how, small, big)
    groups = 1 if norm is None else norm.mean.shape[0]
    (n, a, h, w), b, taps = small.shape, big.shape[1], how.kernel[0] * how.kernel[1]
    pixels = n // groups * h * w
    tile = tile_of(a, b, pixels, groups * taps, small.dtype, _precision(), _aligned(small, big))
    blocks = triton.cdiv(a, tile["BLOCK_M"]) * triton.cdiv(b, tile["BLOCK_N"]) * taps
    # two programs for each processor, of at least four steps
    pieces = max(1, min(2 * PROCESSORS // (blocks * groups), pixels // (4 * tile["BLOCK_K"])))
    span = triton.cdiv(triton.cdiv(pixels, pieces), tile["BLOCK_K"]) * tile["BLOCK_K"]
    pieces = triton.cdiv(pixels, span)
    parts = groups * pieces
    out = _empty(small, (a, b, *how.kernel))
    found = out if parts == 1 else out.new_empty((parts, out.numel()), dtype=torch.float32)
    sizes = (n // groups, h, w, a, *big.shape[2:], b, pieces, span)
    tensors, numbers = ((None,) * 4, (0, 0)) if norm is None else (norm.tensors, norm.numbers)
    with _device(small):
        pair_product[(parts * blocks,)](small, big, found, *tensors, *sizes, *numbers, **how.form, **tile)
    if parts > 1:
        out.permute(0, 2, 3, 1).view(-1).copy_(found.sum(0))
    return out


def tile_of(m: int, n: int, k: int, copies: int, dtype: torch.dtype, precision: str, aligned: bool) -> dict[str, Any]:
    """How a program cuts a product of (m, k) and (k, n), of which there are ``copies``: the constants of both kernels.

    ``aligned``: channels can be read 16 bytes at a time. Otherwise a large tile's addresses alone fill the registers.
    """
    if min(m, n, k) <= FEW:
        blocks = [max(FEW, min(triton.next_power_of_2(size), 64)) for size in (m, n, k)]
        while blocks[0] * blocks[1] * blocks[2] > AREA:
            blocks[blocks.index(max(blocks))] //= 2
        return _tile(blocks, False, tl.float32, precision, 4, 2)
    by_hand = dtype == torch.float32 and precision == "ieee"  # tensor cores cannot
    large = (128, 64, 32) if dtype == torch.float32 else (128, 128, 64)
    most, stages = ((64, 32, 16), 2) if by_hand or not aligned else (large, 3)
    blocks = [max(16, min(triton.next_power_of_2(size), limit)) for size, limit in zip((m, n, k), most, strict=True)]
    while triton.cdiv(m, blocks[0]) * triton.cdiv(n, blocks[1]) * copies < PROCESSORS and max(blocks[:2]) > 64:
        blocks[blocks.index(max(blocks[:2]))] //= 2
    warps = 8 if blocks[0] * blocks[1] * dtype.itemsize > 16384 else 4
    factor = tl.float32 if triton.knobs.runtime.interpret else FACTORS[dtype]  # the interpreter has no arithmetic of fewer bits
    return _tile(blocks, True, factor, precision, warps, stages)


def _tile(blocks: list[int], dot: bool, factor: Any, precision: str, warps: int, stages: int) -> dict[str, Any]:
    sizes = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True))
    return {**sizes, "DOT": dot, "FACTOR": factor, "PRECISION": precision, "num_warps": warps, "num_stages": stages}


def _aligned(*maps: Tensor) -> bool:
    return all(t.shape[1] % 16 == 0 and t.data_ptr() % 16 == 0 for t in maps)


def _precision() -> str:
    """What PyTorch's own convolutions may do with float32."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


# ---- the ops


def convolve(big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """s (N, A, h, w), with bias (A,) added."""
    expect_factors(big, weight, bias, 1)
    how = Spread(_kernel(weight), stride, padding, False)
    y = how.empty(big, weight)
    spread(how, laid_out(big), laid_out(weight), bias, y)
    return y


def transposed_convolve(
    small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int
) -> Tensor:
    """b (N, B, height, width), with bias (B,) added."""
    expect_factors(small, weight, bias, 0)
    y = _empty(small, (small.shape[0], weight.shape[1], height, width))
    spread(Spread(_kernel(weight), stride, padding, True), laid_out(small), laid_out(weight), bias, y)
    return y


def convolution_weight_gradient(small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    """W (A, B, height, width)."""
    expect_pair(small, big)
    return pair(Spread((height, width), stride, padding, False), laid_out(small), laid_out(big))


def expect_factors(x: Tensor, weight: Tensor, bias: Tensor | None, summed: int) -> None:
    """``summed`` is the dimension of the weight that goes with x's channels."""
    expect_pair(x, weight)
    _expect(x.shape[1] == weight.shape[summed], f"a weight for {x.shape[1]} channels, got {tuple(weight.shape)}")
    if bias is not None:
        _expect(bias.shape == weight.shape[1 - summed : 2 - summed], f"a bias for {tuple(weight.shape)}, got {tuple(bias.shape)}")


def expect_pair(one: Tensor, other: Tensor) -> None:
    for t in (one, other):
        _expect(t.dim() == 4 and t.numel() > 0, f"four dimensions and at least one value, got {tuple(t.shape)}")
    _expect(one.dtype == other.dtype and one.dtype in FACTORS, f"both in {', '.join(map(str, FACTORS))}, got {other.dtype}")
    _expect(one.device == other.device, "all tensors on one device")


def expect_reach(how: Spread, small: Tensor, big: Tensor) -> None:
    """That the small map has a pixel for each place that the kernel has on the big one and its padding."""
    extents = tuple((big.shape[i + 2] + 2 * how.padding - how.kernel[i]) // how.stride + 1 for i in (0, 1))
    got = f"got {tuple(small.shape)} for {tuple(big.shape)}"
    _expect(small.shape[2:] == extents and min(extents) > 0, f"a small map of {extents} pixels, {got}")
    _expect(small.shape[0] == big.shape[0], f"maps of as many samples, {got}")


def laid_out(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _kernel(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2], weight.shape[3]
