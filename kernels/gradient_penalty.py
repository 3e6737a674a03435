"""Gradient penalty in Triton: the two ops of the page ganfast/ops/gradient_penalty.py.

Batches lie in memory sample by sample, ``length`` elements each. Sums run in float64 and in a fixed order: no atomics, so a run
gives the same bits again. Offsets are int64.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(2048)  # elements that a program mixes
CHUNK = tl.constexpr(1024)  # of a sample, or of the costs, at a time

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@triton.jit
def interpolation(real_ptr, fake_ptr, alpha_ptr, out_ptr, length, STACKED: tl.constexpr):
    """out = fake + alpha (real - fake), from the nearer end as torch.lerp does it; or [real; fake; that] for STACKED.

    Moves |real|, |fake| and |out| bytes. A program reads 2048 elements of one sample from both.
    """
    sample, tile = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    within = tile * BLOCK + tl.arange(0, BLOCK)
    at, mask = sample * length + within, within < length
    alpha = tl.load(alpha_ptr + sample)
    real = tl.load(real_ptr + at, mask, 0.0).to(alpha.dtype)
    fake = tl.load(fake_ptr + at, mask, 0.0).to(alpha.dtype)
    near_fake = tl.abs(alpha) < 0.5
    mixed = tl.where(near_fake, fake, real) + tl.where(near_fake, alpha, alpha - 1) * (real - fake)
    out_type = out_ptr.dtype.element_ty
    if STACKED:
        batch = tl.num_programs(0).to(tl.int64) * length
        tl.store(out_ptr + at, real.to(out_type), mask)
        tl.store(out_ptr + batch + at, fake.to(out_type), mask)
        tl.store(out_ptr + 2 * batch + at, mixed.to(out_type), mask)
    else:
        tl.store(out_ptr + at, mixed.to(out_type), mask)


@triton.jit
def _float64(bits):
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit(do_not_specialize=["target", "scale"])
def slope(
    g_ptr,
    v_ptr,
    costs_ptr,
    length,
    target: tl.int64,
    scale: tl.int64,
    ONE_SIDED: tl.constexpr,
    WIDE: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """v = scale e / n g and costs = e^2 for one sample. It is scaled in the type WIDE, in float64 where a factor above LARGEST,
    the largest number of that type, leads out of it and back.

    Moves |g| and |v| bytes. A program reads one sample twice, the second time out of a cache.
    """
    sample = tl.program_id(0).to(tl.int64)
    g_ptr += sample * length
    v_ptr += sample * length
    squares = tl.zeros([CHUNK], tl.float64)
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        element = tl.load(g_ptr + at, at < length, 0.0).to(tl.float64)
        squares += element * element
    norm = tl.sqrt(tl.sum(squares, 0))
    excess = norm - _float64(target)
    if ONE_SIDED:
        excess = tl.where(excess < 0, 0.0, excess)
    tl.store(costs_ptr + sample, excess * excess)
    factor = tl.where(norm == 0, 0.0, excess / norm) * _float64(scale)
    if tl.abs(factor) <= LARGEST:
        _scale(g_ptr, v_ptr, length, factor.to(WIDE), WIDE)
    else:
        _scale(g_ptr, v_ptr, length, factor, WIDE)


@triton.jit
def _scale(g_ptr, v_ptr, length, factor, WIDE: tl.constexpr):
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        element = tl.load(g_ptr + at, at < length, 0.0).to(factor.dtype)
        tl.store(v_ptr + at, (element * factor).to(WIDE).to(v_ptr.dtype.element_ty), at < length)


@triton.jit(do_not_specialize=["scale"])
def cost_sum(costs_ptr, penalty_ptr, count, scale: tl.int64):
    """penalty = scale * the sum of costs.

    Moves the costs. One program reads them all.
    """
    costs = tl.zeros([CHUNK], tl.float64)
    for start in range(0, count, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        costs += tl.load(costs_ptr + at, at < count, 0.0)
    tl.store(penalty_ptr, (tl.sum(costs, 0) * _float64(scale)).to(penalty_ptr.dtype.element_ty))


# ---- the ops


def interpolate(real: Tensor, fake: Tensor, alpha: Tensor, stacked: bool) -> Tensor:
    """Points between real and fake (N, ...) at alpha (N,); or ``[real; fake; points]``."""
    if real.dim() == 0 or real.shape != fake.shape or alpha.shape != real.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (real, fake, alpha))
        raise ValueError(f"expected real and fake of one shape (N, ...) and alpha (N,), got {shapes}")
    _expect_floats(real, fake)
    _expect(real.device == fake.device == alpha.device, "all tensors on one device")
    dtype, samples = torch.promote_types(real.dtype, fake.dtype), real.shape[0]
    promised = _stacked(real, dtype) if stacked else torch.empty_like(real, dtype=dtype)
    out = _by_sample(promised)
    real, fake = (_laid_out(_beside(x, dtype), out[:samples]) for x in (real, fake))
    alpha = alpha.to(torch.promote_types(dtype, torch.float32)).contiguous()
    length = real.numel() // max(1, samples)
    if real.numel():
        with _device(real):
            interpolation[samples, triton.cdiv(length, BLOCK.value)](real, fake, alpha, out, length, STACKED=stacked)
    return out if out is promised else promised.copy_(out)


def slope_penalty(g: Tensor, target: float, weight: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """P, a scalar, and v (N, ...)."""
    if g.dim() == 0 or g.shape[0] == 0:
        raise ValueError(f"expected gradients (N, ...) with N >= 1, got {tuple(g.shape)}")
    _expect_floats(g)
    samples, promised = g.shape[0], torch.empty_like(g)
    v = _by_sample(promised)
    g = _laid_out(g, v)
    wide = torch.promote_types(g.dtype, torch.float32)
    costs, penalty = g.new_empty(samples, dtype=torch.float64), g.new_empty((), dtype=wide)
    types: dict[str, Any] = {"WIDE": tl.float64 if wide == torch.float64 else tl.float32, "LARGEST": torch.finfo(wide).max}
    scale, length = _bits(2 * weight / samples), g.numel() // samples
    with _device(g):
        slope[(samples,)](g, v, costs, length, _bits(target), scale, ONE_SIDED=one_sided, **types)
        cost_sum[(1,)](costs, penalty, samples, _bits(weight / samples))
    return penalty, v if v is promised else promised.copy_(v)


# ---- what they share


def _bits(number: float) -> int:
    """A float64 as an int64, which Triton hands over whole; it would make a float32 of a float."""
    return int(struct.unpack("q", struct.pack("d", number))[0])


def _expect(held: bool, what: str) -> None:
    if not held:
        raise ValueError(f"expected {what}")


def _expect_floats(*tensors: Tensor) -> None:
    _expect(all(tensor.dtype in FLOATS for tensor in tensors), "tensors in float32, float64, bfloat16 or float16")


def _beside(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In its own type, unless that and ``dtype`` are not mixed in the same one."""
    return tensor.to(dtype) if dtype == torch.float64 else tensor


def _stacked(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Room for three batches in one, channels last where a batch is that and not contiguous, otherwise contiguous."""
    channels_last = batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last) and not batch.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((3 * batch.shape[0], *batch.shape[1:]), dtype=dtype, device=batch.device, memory_format=layout)


def _by_sample(promised: Tensor) -> Tensor:
    """``promised``, which has no gaps, if each of its samples is one run of memory; otherwise contiguous room of its shape."""
    samples = promised.shape[0]
    if promised.numel() == 0 or samples == 1 or promised.stride(0) == promised.numel() // samples:
        return promised
    return torch.empty_like(promised, memory_format=torch.contiguous_format)


def _laid_out(tensor: Tensor, model: Tensor) -> Tensor:
    """``tensor`` with the strides of ``model``."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
