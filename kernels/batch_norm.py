"""Batch norm with its activation in Triton: the two ops of the page ganfast/ops/batch_norm.py.

A group in memory is ``rows`` of ``channels`` times ``run`` columns. Channels last has a row for each position and a run of one,
contiguous a row for each sample and the positions of a channel as its run. A program has a tile of HEIGHT by WIDTH of that. In
channels last it has one channel in each column; contiguous it has a SINGLE one, and its sums are over the columns too.

Three launches a direction: two sums for each channel of each tile, the merging of those, and the change of the volume by what
was found. Sums run in the type of the statistics within a tile, and those in float64, in a fixed order: no atomics, so a run
gives the same bits again. A group's tiles are those that it would have alone. Offsets are int64.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LAYERS, CHANNELS = tl.constexpr(64), tl.constexpr(8)  # that a program merges at a time, and in all
BYTES = 8192  # of a tile, as it is computed with: it stays in registers
COLUMNS = 128  # of a tile, where rows are many

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---- tiles


@triton.jit
def _pieces(run, WIDTH: tl.constexpr, SINGLE: tl.constexpr):
    """Tiles side by side of one channel."""
    if SINGLE:
        return tl.cdiv(run, WIDTH)
    else:
        return 1


@triton.jit
def _layers(rows, run, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr):
    """Tiles of a group that share a channel."""
    return tl.cdiv(rows, HEIGHT) * _pieces(run, WIDTH, SINGLE)


@triton.jit
def _tile(number, rows, channels, run, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr):
    """Group, layer, channels (1 or WIDTH,), and the offsets of the elements (HEIGHT, WIDTH), with a mask."""
    down, pieces = tl.cdiv(rows, HEIGHT), _pieces(run, WIDTH, SINGLE)
    strips = channels if SINGLE else tl.cdiv(channels, WIDTH)
    number = number.to(tl.int64)
    piece, strip, above = number % pieces, number // pieces % strips, number // pieces // strips
    group = above // down
    row = above % down * HEIGHT + tl.arange(0, HEIGHT)
    if SINGLE:
        channel, within, end = strip + tl.arange(0, 1), piece * WIDTH + tl.arange(0, WIDTH), run
    else:
        channel, within, end = strip * WIDTH + tl.arange(0, WIDTH), tl.arange(0, WIDTH), channels - strip * WIDTH
    first = (group * rows + row) * channels * run
    at = first[:, None] + (strip * (run if SINGLE else WIDTH) + within)[None, :]
    return group, above % down * pieces + piece, channel, at, (row < rows)[:, None] & (within < end)[None, :]


@triton.jit
def _values(layer, rows, run, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr):
    """Of a channel in a tile."""
    pieces = _pieces(run, WIDTH, SINGLE)
    height = tl.minimum(HEIGHT, rows - layer // pieces * HEIGHT)
    if SINGLE:
        return height * tl.minimum(WIDTH, run - layer % pieces * WIDTH)
    else:
        return height


@triton.jit
def _sum(terms, SINGLE: tl.constexpr):
    """Of a tile's terms (HEIGHT, WIDTH), for each channel."""
    columns = tl.sum(terms, 0)
    if SINGLE:
        return tl.sum(columns, 0, keep_dims=True)
    else:
        return columns


@triton.jit
def _part(sums_ptr, group, layer, layers, channel, channels):
    """Where a tile's first sum of a channel stands; the second one is ``channels`` later."""
    return sums_ptr + (group * layers + layer) * 2 * channels + channel


# ---- the activation


@triton.jit
def _float64(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _tanh(z):
    """To the rounding of a one: libdevice's is unknown to the interpreter."""
    e = tl.exp(-2 * tl.abs(z))
    size = (1 - e) / (1 + e)
    return tl.where(z < 0, -size, size)


@triton.jit
def _activated(z, slope, TANH: tl.constexpr):
    if TANH:
        return _tanh(z)
    else:
        return tl.where(z < 0, tl.where(slope == 0, 0.0, z * slope), z)  # 0 of -infinity too


@triton.jit
def _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, channel, channels):
    """mean, scale and bias of z = (x - mean) scale + bias."""
    mask, at = channel < channels, group * channels + channel
    var = tl.load(var_ptr + at, mask, 1.0)
    scale = tl.rsqrt(var + _float64(eps_bits).to(var.dtype))
    bias = tl.zeros_like(scale)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + channel, mask, 0.0)
        bias = tl.load(bias_ptr + channel, mask, 0.0)
    return tl.load(mean_ptr + at, mask, 0.0), scale, bias


@triton.jit
def _backwards(dy, x, mean, scale, bias, slope, TANH: tl.constexpr):
    """x - mean, and dz."""
    d = x.to(mean.dtype) - mean[None, :]
    dy = dy.to(mean.dtype)
    z = d * scale[None, :] + bias[None, :]
    if TANH:
        y = _tanh(z)
        dz = dy * (1 - y * y)
    else:
        dz = tl.where(z > 0, dy, dy * slope)
    return d, dz


# ---- forward


@triton.jit
def tile_moments(
    x_ptr,
    sums_ptr,
    rows,
    channels,
    run,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """For each channel of a tile, how far its mean lies from the group's first value of the channel, and the sum of squared
    deviations from the tile's own mean. Neither cancels where the mean is large.

    Moves |x| bytes. A program reads one tile once, and the group's first row.
    """
    group, layer, channel, at, mask = _tile(tl.program_id(0), rows, channels, run, HEIGHT, WIDTH, SINGLE)
    there = channel < channels
    centre = tl.load(x_ptr + (group * rows * channels + channel) * run, there, 0.0).to(WIDE)
    d = tl.load(x_ptr + at, mask, 0.0).to(WIDE) - centre[None, :]
    off = _sum(tl.where(mask, d, 0.0), SINGLE) / _values(layer, rows, run, HEIGHT, WIDTH, SINGLE).to(WIDE)
    d = tl.where(mask, d - off[None, :], 0.0)
    part_ptr = _part(sums_ptr, group, layer, _layers(rows, run, HEIGHT, WIDTH, SINGLE), channel, channels)
    tl.store(part_ptr, off, there)
    tl.store(part_ptr + channels, _sum(d * d, SINGLE), there)


@triton.jit
def _follow(running_ptr, found, momentum, kept, there):
    tl.store(running_ptr, momentum * found + kept * tl.load(running_ptr, there, 0.0), there)


@triton.jit
def _merged(
    x_ptr,
    sums_ptr,
    group,
    channel,
    rows,
    channels,
    run,
    values,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """mean and var of some of a group's channels, in float64."""
    layers, there = _layers(rows, run, HEIGHT, WIDTH, SINGLE), channel < channels
    sums = tl.zeros([LAYERS, CHANNELS], tl.float64)
    for start in range(0, layers, LAYERS):
        layer = start + tl.arange(0, LAYERS).to(tl.int64)
        part_ptr = _part(sums_ptr, group, layer[:, None], layers, channel[None, :], channels)
        count = _values(layer, rows, run, HEIGHT, WIDTH, SINGLE).to(tl.float64)
        sums += count[:, None] * tl.load(part_ptr, (layer < layers)[:, None] & there[None, :], 0.0)
    off = tl.sum(sums, 0) / values
    squares = tl.zeros([LAYERS, CHANNELS], tl.float64)
    for start in range(0, layers, LAYERS):
        layer = start + tl.arange(0, LAYERS).to(tl.int64)
        part_ptr = _part(sums_ptr, group, layer[:, None], layers, channel[None, :], channels)
        count = _values(layer, rows, run, HEIGHT, WIDTH, SINGLE).to(tl.float64)
        mask = (layer < layers)[:, None] & there[None, :]
        away = tl.load(part_ptr, mask, 0.0).to(tl.float64) - off[None, :]
        squares += tl.where(mask, tl.load(part_ptr + channels, mask, 0.0) + count[:, None] * away * away, 0.0)
    first = (group + tl.zeros_like(channel)) * rows * channels  # in int64, as the channel is
    centre = tl.load(x_ptr + (first + channel) * run, there, 0.0).to(tl.float64)
    return centre + off, tl.sum(squares, 0) / values


@triton.jit(do_not_specialize=["momentum_bits", "values"])
def moments(
    x_ptr,
    sums_ptr,
    mean_ptr,
    var_ptr,
    running_mean_ptr,
    running_var_ptr,
    counted_ptr,
    groups,
    momentum_bits: tl.int64,
    rows,
    channels,
    run,
    values,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """mean and var of the groups' channels, of what their tiles found, and the running ones, which follow each group in turn.

    Moves the sums. A program reads those of 8 channels, of all groups, twice.
    """
    wide = mean_ptr.dtype.element_ty
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    for group in range(0, groups):
        mean, var = _merged(x_ptr, sums_ptr, group, channel, rows, channels, run, values, HEIGHT, WIDTH, SINGLE)
        mean, var = mean.to(wide), var.to(wide)
        at = group * channels + channel
        tl.store(mean_ptr + at, mean, there)
        tl.store(var_ptr + at, var, there)
        if running_mean_ptr is not None:
            momentum, kept = _float64(momentum_bits).to(wide), (1 - _float64(momentum_bits)).to(wide)
            unbiased = var * (values.to(tl.float64) / (values - 1)).to(wide)
            _follow(running_mean_ptr + channel, mean, momentum, kept, there)
            _follow(running_var_ptr + channel, unbiased, momentum, kept, there)
    if counted_ptr is not None:  # noqa: SIM102  known when this is compiled
        if tl.program_id(0) == 0:
            tl.store(counted_ptr, tl.load(counted_ptr) + groups)


@triton.jit(do_not_specialize=["eps_bits", "slope_bits"])
def activation(
    x_ptr,
    y_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    channels,
    run,
    eps_bits: tl.int64,
    slope_bits: tl.int64,
    TANH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """y = act((x - mean) scale + bias).

    Moves |x| and |y| bytes. A program reads one tile, and the statistics and parameters of its channels. The last tiles come
    first: a cache may have them still.
    """
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    group, _, channel, at, mask = _tile(number, rows, channels, run, HEIGHT, WIDTH, SINGLE)
    mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, channel, channels)
    z = (tl.load(x_ptr + at, mask, 0.0).to(mean.dtype) - mean[None, :]) * scale[None, :] + bias[None, :]
    y = _activated(z, _float64(slope_bits).to(mean.dtype), TANH)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask)


# ---- backward


@triton.jit(do_not_specialize=["eps_bits", "slope_bits"])
def tile_gradients(
    dy_ptr,
    x_ptr,
    sums_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    rows,
    channels,
    run,
    eps_bits: tl.int64,
    slope_bits: tl.int64,
    TANH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """sum dz and sum dz (x - mean), for each channel of a tile.

    Moves |dy| and |x| bytes. A program reads one tile of both, and the statistics and parameters of its channels.
    """
    group, layer, channel, at, mask = _tile(tl.program_id(0), rows, channels, run, HEIGHT, WIDTH, SINGLE)
    mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, channel, channels)
    dy, x = tl.load(dy_ptr + at, mask, 0.0), tl.load(x_ptr + at, mask, 0.0)
    d, dz = _backwards(dy, x, mean, scale, bias, _float64(slope_bits).to(mean.dtype), TANH)
    part_ptr = _part(sums_ptr, group, layer, _layers(rows, run, HEIGHT, WIDTH, SINGLE), channel, channels)
    # outside of the tile dy and so dz is zero
    tl.store(part_ptr, _sum(dz, SINGLE), channel < channels)
    tl.store(part_ptr + channels, _sum(dz * d, SINGLE), channel < channels)


@triton.jit(do_not_specialize=["eps_bits"])
def gradients(
    sums_ptr,
    var_ptr,
    levels_ptr,
    tilts_ptr,
    dweight_ptr,
    dbias_ptr,
    groups,
    layers,
    values,
    channels,
    eps_bits: tl.int64,
):
    """level = sum dz / m and tilt = sum(dz x^) / (m sqrt(var + eps)) of a group's channels, and dbias and dweight.

    Moves the sums. A program reads those of 8 channels, of all groups.
    """
    channel = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    wide = levels_ptr.dtype.element_ty
    dweight, dbias = tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64)
    for group in range(0, groups):
        sums, products = tl.zeros([LAYERS, CHANNELS], tl.float64), tl.zeros([LAYERS, CHANNELS], tl.float64)
        for start in range(0, layers, LAYERS):
            layer = start + tl.arange(0, LAYERS).to(tl.int64)
            mask = (layer < layers)[:, None] & there[None, :]
            part_ptr = _part(sums_ptr, group, layer[:, None], layers, channel[None, :], channels)
            sums += tl.load(part_ptr, mask, 0.0).to(tl.float64)
            products += tl.load(part_ptr + channels, mask, 0.0).to(tl.float64)
        at = group * channels + channel
        inverse = 1 / tl.sqrt(tl.load(var_ptr + at, there, 1.0).to(tl.float64) + _float64(eps_bits))
        sum = tl.sum(sums, 0)
        product = tl.sum(products, 0) * inverse
        tl.store(levels_ptr + at, (sum / values).to(wide), there)
        tl.store(tilts_ptr + at, (product * inverse / values).to(wide), there)
        dbias += sum
        dweight += product
    tl.store(dweight_ptr + channel, dweight.to(wide), there)
    tl.store(dbias_ptr + channel, dbias.to(wide), there)


@triton.jit(do_not_specialize=["eps_bits", "slope_bits"])
def gradient(
    dy_ptr,
    x_ptr,
    dx_ptr,
    mean_ptr,
    var_ptr,
    weight_ptr,
    bias_ptr,
    levels_ptr,
    tilts_ptr,
    rows,
    channels,
    run,
    eps_bits: tl.int64,
    slope_bits: tl.int64,
    TANH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """dx = scale (dz - level - (x - mean) tilt).

    Moves |dy|, |x| and |dx| bytes. A program reads one tile of dy and x, and the statistics, parameters, levels and tilts of its
    channels. The last tiles come first: a cache may have them still.
    """
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    group, _, channel, at, mask = _tile(number, rows, channels, run, HEIGHT, WIDTH, SINGLE)
    mean, scale, bias = _affine(mean_ptr, var_ptr, weight_ptr, bias_ptr, eps_bits, group, channel, channels)
    level = tl.load(levels_ptr + group * channels + channel, channel < channels, 0.0)
    tilt = tl.load(tilts_ptr + group * channels + channel, channel < channels, 0.0)
    dy, x = tl.load(dy_ptr + at, mask, 0.0), tl.load(x_ptr + at, mask, 0.0)
    d, dz = _backwards(dy, x, mean, scale, bias, _float64(slope_bits).to(mean.dtype), TANH)
    dx = scale[None, :] * (dz - level[None, :] - d * tilt[None, :])
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask)


# ---- the ops


class _Tiles:
    """How a volume is cut: the arguments of all kernels that say so, and how many tiles there are."""

    def __init__(self, x: Tensor, groups: int, wide: torch.dtype) -> None:
        channels = x.shape[1]
        positions = x.numel() // (x.shape[0] * channels)
        single = positions > 1 and x.is_contiguous()
        rows, run = (x.shape[0] // groups, positions) if single else (x.shape[0] // groups * positions, 1)
        area = BYTES // wide.itemsize
        narrow = min(COLUMNS, triton.next_power_of_2(run if single else channels))
        height = min(triton.next_power_of_2(rows), area // narrow)
        width = min(triton.next_power_of_2(run), area // height) if single else narrow
        down, pieces = triton.cdiv(rows, height), triton.cdiv(run, width) if single else 1
        self.sizes = (rows, channels, run)
        self.form: dict[str, Any] = {"HEIGHT": height, "WIDTH": width, "SINGLE": single}
        self.groups, self.layers, self.values = groups, down * pieces, rows * run
        self.grid = (groups * down * pieces * (channels if single else triton.cdiv(channels, width)),)
        self.blocks = triton.cdiv(channels, CHANNELS.value)  # of channels that are merged at once

    def sums(self, model: Tensor) -> Tensor:
        return model.new_empty((self.groups, self.layers, 2, self.sizes[1]))


def batch_norm_act(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, slope: float, tanh: bool, *running: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y (N, C, ...), mean and biased var (groups, C)."""
    _expect_volume(x, weight, bias, groups)
    dense = x if _is_volume(x) else x.contiguous()
    mean, var = statistics(dense, groups, *running)
    y = activated(dense, mean, var, weight, bias, eps, slope, tanh)
    return y if dense is x else torch.empty_like(x).copy_(y), mean, var


def batch_norm_act_tracked(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
    tanh: bool,
    running_mean: Tensor,
    running_var: Tensor,
    counted: Tensor | None,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the running statistics (C,) follow."""
    _expect_volume(x, weight, bias, groups)
    _expect(x.numel() > x.shape[1] * groups, f"more than one value a channel, got {tuple(x.shape)}")
    for statistic in (running_mean, running_var):
        fits = statistic.dtype == torch.promote_types(x.dtype, torch.float32) and statistic.is_contiguous()
        what = f"running statistics ({x.shape[1]},) in the type of the batch's, got {tuple(statistic.shape)}"
        _expect(fits and statistic.shape == x.shape[1:2] and statistic.device == x.device, what)
    if counted is not None:
        fits = counted.numel() == 1 and counted.dtype == torch.int64 and counted.device == x.device
        _expect(fits, f"a count in int64, got {tuple(counted.shape)}")
    return batch_norm_act(x, weight, bias, groups, eps, slope, tanh, running_mean, running_var, counted, momentum)


def normalise_act(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> Tensor:
    """y (N, C, ...), by a mean and a biased var (groups, C)."""
    _expect_volume(x, weight, bias, mean.shape[0] if mean.dim() == 2 else 1)
    _expect_statistics(x, mean, var)
    dense = x if _is_volume(x) else x.contiguous()
    y = activated(dense, mean.contiguous(), var.contiguous(), weight, bias, eps, slope, tanh)
    return y if dense is x else torch.empty_like(x).copy_(y)


def statistics(
    x: Tensor,
    groups: int,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    counted: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """mean and biased var (groups, C) of an x that is contiguous or channels last; the running ones follow."""
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.new_empty((groups, x.shape[1]), dtype=wide)
    var = torch.empty_like(mean)
    tiles = _Tiles(x, groups, wide)
    sums = tiles.sums(mean)
    with _device(x):
        tile_moments[tiles.grid](x, sums, *tiles.sizes, **tiles.form, WIDE=tl.float64 if wide == torch.float64 else tl.float32)
        running = running_mean, running_var, counted, groups, _bits(momentum)
        moments[(tiles.blocks,)](x, sums, mean, var, *running, *tiles.sizes, tiles.values, **tiles.form)
    return mean, var


def activated(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, tanh: bool
) -> Tensor:
    """y of such an x, whose statistics are known, and like it in memory."""
    y, tiles = torch.empty_like(x), _Tiles(x, mean.shape[0], mean.dtype)
    parameters = (_widened(weight, mean.dtype), _widened(bias, mean.dtype))
    act = (_bits(eps), _bits(slope), tanh)
    with _device(x):
        activation[tiles.grid](x, y, mean, var, *parameters, *tiles.sizes, *act, **tiles.form)
    return y


def batch_norm_act_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (N, C, ...), dweight and dbias (C,)."""
    _expect(grad.shape == x.shape, f"a gradient of x's shape {tuple(x.shape)}, got {tuple(grad.shape)}")
    _expect_volume(x, weight, bias, mean.shape[0])
    _expect_floats(grad)
    _expect_statistics(x, mean, var)
    _expect(x.device == grad.device, "all tensors on one device")
    wide, promised_type = torch.promote_types(x.dtype, torch.float32), x.dtype
    dtype = x.dtype if grad.dtype == x.dtype else wide
    promised = torch.empty_like(x, dtype=dtype)
    dx = _volume(promised)
    x, grad = (_laid_out(t.to(dtype), dx) for t in (x, grad))
    mean, var = mean.contiguous(), var.contiguous()
    parameters = (_widened(weight, wide), _widened(bias, wide))
    tiles = _Tiles(x, mean.shape[0], wide)
    sums = tiles.sums(mean)
    act = (_bits(eps), _bits(slope), tanh)
    with _device(x):
        tile_gradients[tiles.grid](grad, x, sums, mean, var, *parameters, *tiles.sizes, *act, **tiles.form)
    dweight, dbias = backward_of_sums(sums, grad, x, dx, mean, var, *parameters, eps, slope, tanh)
    return (dx if dx is promised else promised.copy_(dx)).to(promised_type), dweight, dbias


def backward_of_sums(
    sums: Tensor,
    grad: Tensor,
    x: Tensor,
    dx: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    slope: float,
    tanh: bool,
) -> tuple[Tensor, Tensor]:
    """Fill ``dx``, which may be ``grad``, and return dweight and dbias, of the sums (groups, layers, 2, C) of all tiles.

    Volumes lie alike in memory.
    """
    levels, tilts = torch.empty_like(mean), torch.empty_like(mean)
    dweight, dbias = (torch.empty_like(mean[0]) for _ in range(2))
    tiles = _Tiles(x, mean.shape[0], mean.dtype)
    act = (_bits(eps), _bits(slope), tanh)
    with _device(x):
        counts = (tiles.groups, sums.shape[1], tiles.values, x.shape[1])
        gradients[(tiles.blocks,)](sums, var, levels, tilts, dweight, dbias, *counts, _bits(eps))
        gradient[tiles.grid](grad, x, dx, mean, var, weight, bias, levels, tilts, *tiles.sizes, *act, **tiles.form)
    return dweight, dbias


# ---- what they share


def _bits(number: float) -> int:
    """A float64 as an int64, which Triton hands over whole; it would make a float32 of a float."""
    return int(struct.unpack("q", struct.pack("d", number))[0])


def _expect(held: bool, what: str) -> None:
    if not held:
        raise ValueError(f"expected {what}")


def _expect_floats(*tensors: Tensor) -> None:
    _expect(all(tensor.dtype in FLOATS for tensor in tensors), "tensors in float32, float64, bfloat16 or float16")


def _expect_volume(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> None:
    _expect(x.dim() >= 2 and x.numel() > 0, f"x (N, C, ...) with at least one value, got {tuple(x.shape)}")
    _expect(groups >= 1 and x.shape[0] % groups == 0, f"groups that divide the batch of {x.shape[0]}, got {groups}")
    _expect((weight is None) == (bias is None), "weight and bias, or neither")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            _expect(parameter.shape == x.shape[1:2], f"{name} ({x.shape[1]},), got {tuple(parameter.shape)}")
            _expect(parameter.device == x.device, "all tensors on one device")
    _expect_floats(x)


def _expect_statistics(x: Tensor, mean: Tensor, var: Tensor) -> None:
    for statistic in (mean, var):
        fits = statistic.shape == (mean.shape[0], x.shape[1]) and statistic.dtype == torch.promote_types(x.dtype, torch.float32)
        _expect(fits, f"mean and var (groups, {x.shape[1]}), as the forward pass gave them, got {tuple(statistic.shape)}")
    _expect(x.device == mean.device == var.device, "all tensors on one device")


def _widened(parameter: Tensor | None, wide: torch.dtype) -> Tensor | None:
    return None if parameter is None else parameter.to(wide).contiguous()


def _is_volume(x: Tensor) -> bool:
    """Whether x is contiguous or channels last."""
    return x.is_contiguous() or (x.dim() > 2 and x.movedim(1, -1).is_contiguous())


def _volume(promised: Tensor) -> Tensor:
    """``promised`` if it is a volume; otherwise contiguous room of its shape."""
    return promised if _is_volume(promised) else torch.empty_like(promised, memory_format=torch.contiguous_format)


def _laid_out(tensor: Tensor, model: Tensor) -> Tensor:
    """``tensor`` with the strides of ``model``."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
