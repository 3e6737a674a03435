"""Convolution of a normalised, activated input with the statistics of its output, in Triton: the ops of the page
ganfast/ops/conv_norm.py. The products are those of convolution.py, batch norm's last steps those of batch_norm.py.

Launches: two forward, the product and the merging of its tiles' statistics; three for the gradient by the input, the product with
the two sums that batch norm's gradient needs, their merging, and one pass over what the product made; one or two for that by the
filter. What is normalised and activated is never written to memory.

Written for H100 and H200, and never run on a GPU yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .batch_norm import CHANNELS, LAYERS, _device, _expect, _part, backward_of_sums
from .convolution import Norm, Spread, _kernel, _outputs, expect_factors, expect_pair, laid_out, pair, spread


@triton.jit
def _pixels(layer, each, height, width, PHASES: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of the outputs, how many are in a layer's tiles."""
    rows, columns = _outputs(layer // PHASES % PHASES, height, PHASES), _outputs(layer % PHASES, width, PHASES)
    return tl.minimum(tl.maximum(rows * columns * each - layer // (PHASES * PHASES) * BLOCK_M, 0), BLOCK_M)


@triton.jit(do_not_specialize=["each", "height", "width", "layers"])
def merged_moments(
    sums_ptr,
    mean_ptr,
    var_ptr,
    each,
    height,
    width,
    channels,
    layers,
    PHASES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """mean and var of a group's channels, of the means and squared deviations of its tiles (Chan, Golub & LeVeque 1983).

    Moves the sums. A program reads those of 8 channels, twice.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    number = tl.program_id(0).to(tl.int64)
    group, channel = number // blocks, number % blocks * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    values = (height.to(tl.int64) * width * each).to(tl.float64)
    sums = tl.zeros([LAYERS, CHANNELS], tl.float64)
    for start in range(0, layers, LAYERS):
        layer = start + tl.arange(0, LAYERS).to(tl.int64)
        part_ptr = _part(sums_ptr, group, layer[:, None], layers, channel[None, :], channels)
        count = _pixels(layer, each, height, width, PHASES, BLOCK_M).to(tl.float64)
        sums += count[:, None] * tl.load(part_ptr, (layer < layers)[:, None] & there[None, :], 0.0)
    mean = tl.sum(sums, 0) / values
    squares = tl.zeros([LAYERS, CHANNELS], tl.float64)
    for start in range(0, layers, LAYERS):
        layer = start + tl.arange(0, LAYERS).to(tl.int64)
        part_ptr = _part(sums_ptr, group, layer[:, None], layers, channel[None, :], channels)
        count = _pixels(layer, each, height, width, PHASES, BLOCK_M).to(tl.float64)
        mask = (layer < layers)[:, None] & there[None, :]
        away = tl.load(part_ptr, mask, 0.0) - mean[None, :]
        squares += tl.where(mask, tl.load(part_ptr + channels, mask, 0.0) + count[:, None] * away * away, 0.0)
    at = group * channels + channel
    tl.store(mean_ptr + at, mean.to(tl.float32), there)
    tl.store(var_ptr + at, (tl.sum(squares, 0) / values).to(tl.float32), there)


# ---- the ops


def conv_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    stride: int,
    padding: int,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and its mean and biased var (groups, C)."""
    expect_factors(x, weight, bias, 0 if transposed else 1)
    norm = _norm(x, mean, var, gamma, beta, eps, slope)
    both = groups or (1 if norm is None else norm.mean.shape[0])
    _expect(norm is None or norm.mean.shape[0] == both, f"as many groups behind as before, got {groups}")
    _expect(x.shape[0] % both == 0, f"groups that divide the batch of {x.shape[0]}, got {both}")
    how = Spread(_kernel(weight), stride, padding, transposed)
    y = how.empty(x, weight)
    sums, height = spread(how, laid_out(x), laid_out(weight), bias, y, both, norm, None, groups > 0)
    means, variances = (x.new_empty((groups, y.shape[1]), dtype=torch.float32) for _ in range(2))
    if sums is not None:
        sizes = x.shape[0] // groups, *y.shape[2:], y.shape[1], sums.shape[1]
        grid = (groups * triton.cdiv(y.shape[1], CHANNELS.value),)
        with _device(x):
            merged_moments[grid](sums, means, variances, *sizes, PHASES=how.phases, BLOCK_M=height)
    return y, means, variances


def conv_norm_input_gradient(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    stride: int,
    padding: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx (N, C, ...), dgamma and dbeta (C,)."""
    expect_factors(grad, weight, None, 1 if transposed else 0)
    expect_pair(grad, x)
    norm = _norm(x, mean, var, gamma, beta, eps, slope)
    x, grad = laid_out(x), laid_out(grad)
    how = Spread(_kernel(weight), stride, padding, not transposed)
    dx = torch.empty_like(x)
    sums, _ = spread(how, grad, laid_out(weight), None, dx, mean.shape[0], norm, x, True)
    dgamma, dbeta = backward_of_sums(sums, dx, x, dx, *norm.tensors, eps, slope, False)
    return dx, dgamma, dbeta


def conv_norm_weight_gradient(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    height: int,
    width: int,
    stride: int,
    padding: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As the weight of the convolution of x to y lies, (C_in, C_out, height, width) where it is transposed; in dtype or x's."""
    expect_pair(grad, x)
    norm = _norm(x, mean, var, gamma, beta, eps, slope)
    small, big = (x, grad) if transposed else (grad, x)
    found = pair(Spread((height, width), stride, padding, transposed), laid_out(small), laid_out(big), norm)
    return found if dtype is None else found.to(dtype)


def _norm(
    x: Tensor, mean: Tensor | None, var: Tensor | None, gamma: Tensor | None, beta: Tensor | None, eps: float, slope: float
) -> Norm | None:
    if mean is None or var is None:
        return None
    _expect(mean.dim() == 2 and x.shape[0] % mean.shape[0] == 0, f"groups that divide the batch of {x.shape[0]}")
    for statistic in (mean, var):
        fits = statistic.shape == (mean.shape[0], x.shape[1]) and statistic.dtype == torch.float32
        _expect(fits, f"mean and var (groups, {x.shape[1]}) in float32, got {tuple(statistic.shape)}, {statistic.dtype}")
    _expect((gamma is None) == (beta is None), "gamma and beta, or neither")
    for parameter in (gamma, beta):
        if parameter is not None:
            _expect(parameter.shape == x.shape[1:2], f"gamma and beta ({x.shape[1]},), got {tuple(parameter.shape)}")
    return Norm(mean, var, gamma, beta, eps, slope)
