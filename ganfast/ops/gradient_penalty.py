r"""What a gradient penalty does around its critic (Gulrajani et al. 2017, equation 3): where it looks, and what a slope costs.

:func:`interpolate` mixes two batches (N, ...), one alpha per sample:

    x^_i = fake_i + alpha_i (real_i - fake_i)

and, where ``stacked``, puts real, fake and x^ in one batch (3N, ...), which is what a critic's step looks at. The mix is made in
float32 (float64 for float64): bfloat16 has 256 values of alpha between a half and one. It starts from the nearer end, as
torch.lerp does, so that alpha = 0 and alpha = 1 give the ends themselves. The result has the type that real and fake promote to,
and real's layout in memory (channels last stays so); where stacked, it is channels last or contiguous.

:func:`slope_penalty` takes g (N, ...), the critic's gradient by each sample, over all of whose dimensions a slope is the length:

    n_i = |g_i|,    e_i = n_i - target (one-sided: nothing below zero),    P = weight / N sum e_i^2,

and returns P with the direction in which the critic's gradient must be differentiated,

    v_i = dP/dg_i = 2 weight / N (e_i / n_i) g_i,    zero where n_i is.

R1 and R2 (Mescheder et al. 2018) are target 0 and half the weight. Squares are summed in float64: those of float32 leave its
range at 1e19. P is float32 (float64 for float64), v has g's dtype and layout. A NaN or an Inf in g reaches P and its own
sample's v, and no other sample's. P's gradient by g is v; it cannot be differentiated twice.

Neither interpolate's result nor v has a gradient. Bytes that must move: two readings and one writing (or three) of a batch; one
reading and one writing of g, because a sample is still in a cache when it is scaled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import Differentiable, below_autograd, register, without_gradient


def interpolate_reference(real: Tensor, fake: Tensor, alpha: Tensor, stacked: bool) -> Tensor:
    """Points between real and fake (N, ...) at alpha (N,); or ``[real; fake; points]``."""
    if real.dim() == 0 or real.shape != fake.shape or alpha.shape != real.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (real, fake, alpha))
        raise ValueError(f"expected real and fake of one shape (N, ...) and alpha (N,), got {shapes}")
    out = _interpolate_fake(real, fake, alpha, stacked)
    n, wide = real.shape[0], torch.promote_types(out.dtype, torch.float32)
    with torch.no_grad():
        mixed = torch.lerp(fake.to(wide), real.to(wide), alpha.to(wide).reshape(n, *[1] * (real.dim() - 1)))
        if stacked:
            out[:n], out[n : 2 * n] = real, fake
        out[2 * n if stacked else 0 :] = mixed
    return out


def _interpolate_fake(real: Tensor, fake: Tensor, alpha: Tensor, stacked: bool) -> Tensor:
    dtype = torch.promote_types(real.dtype, fake.dtype)
    if not stacked:
        return torch.empty_like(real, dtype=dtype)
    channels_last = real.dim() == 4 and real.is_contiguous(memory_format=torch.channels_last) and not real.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((3 * real.shape[0], *real.shape[1:]), dtype=dtype, device=real.device, memory_format=layout)


def slope_penalty_reference(g: Tensor, target: float, weight: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    """P, a scalar, and v (N, ...). Raises ValueError where there is no sample."""
    if g.dim() == 0 or g.shape[0] == 0:
        raise ValueError(f"expected gradients (N, ...) with N >= 1, got {tuple(g.shape)}")
    wide = torch.promote_types(g.dtype, torch.float32)
    n = g.shape[0]
    length = torch.linalg.vector_norm(g.reshape(n, -1), dim=1, dtype=torch.float64)
    excess = length - target
    if one_sided:
        excess = excess.relu()
    penalty = excess.square().sum() * (weight / n)
    factor = torch.where(length == 0, 0.0, excess / length) * (2 * weight / n)
    scaled = g.double() * factor.view(n, *[1] * (g.dim() - 1))  # 1 / n_i may have no place in float32 where v_i has one
    return penalty.to(wide), torch.empty_like(g).copy_(scaled)


def _slope_penalty_plain(g: Tensor, target: float, weight: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    _, v = slope_penalty_reference(g.detach(), target, weight, one_sided)
    lengths = torch.linalg.vector_norm(g.reshape(g.shape[0], -1), dim=1, dtype=torch.float64)
    excess = (lengths - target).relu() if one_sided else lengths - target
    return (excess.square().sum() * (weight / g.shape[0])).to(torch.promote_types(g.dtype, torch.float32)), v


def _slope_penalty_fake(g: Tensor, target: float, weight: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    return g.new_empty((), dtype=torch.promote_types(g.dtype, torch.float32)), torch.empty_like(g)


class _SlopePenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        penalty, v = below_autograd(slope_penalty.overload, g, *arguments)
        without_gradient(ctx, v)
        ctx.save_for_backward(v)
        return penalty, v

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: None) -> tuple[Any, ...]:
        if upstream is None:
            return (None,) * 4
        if torch.is_grad_enabled():
            raise RuntimeError("slope_penalty cannot be differentiated twice: call backward without create_graph")
        (v,) = ctx.saved_tensors
        grad = (v.to(upstream.dtype) * upstream).to(v.dtype)  # a loss scale of 2^16 is none of float16's numbers
        return grad, None, None, None


interpolate = register(
    "interpolate(Tensor real, Tensor fake, Tensor alpha, bool stacked) -> Tensor",
    reference=interpolate_reference,
    fake=_interpolate_fake,
)
slope_penalty = register(
    "slope_penalty(Tensor g, float target, float weight, bool one_sided) -> (Tensor, Tensor)",
    reference=slope_penalty_reference,
    fake=_slope_penalty_fake,
    differentiable=Differentiable(_SlopePenalty.apply, _slope_penalty_plain),
)
