"""Ways from one latent vector to another."""

from __future__ import annotations

import torch
from torch import Tensor

from ganfast.errors import InvalidValue


def lerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """Along the straight line: a (..., D) at t = 0, b (..., D) at 1. Half way between normal draws it is shorter than either."""
    _check(a, b)
    return a + _column(t, a) * (b - a)


def slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """Along the great circle (Shoemake 1985, section 3.3; for latents White 2016, section 2): vectors of one length keep it.

    a (..., D) at t = 0, b (..., D) at 1, with t a number or (...). Where both point one way it is the straight line. Raises
    InvalidValue: shapes that differ, or directions that are opposite, between which there is no one way.
    """
    _check(a, b)
    one, other = (side / side.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(side.dtype).tiny) for side in (a, b))
    # by both lengths: the arc cosine of their product would lose half of the digits near 1
    angle = 2 * torch.atan2((one - other).norm(dim=-1, keepdim=True), (one + other).norm(dim=-1, keepdim=True))
    close = 1e-4 if a.dtype == torch.float64 else 1e-3  # below which sine and angle are equal but for rounding
    if (torch.pi - angle < close).any():
        raise InvalidValue("expected no latents in opposite directions: there are many great circles from one to the other")
    t, straight = _column(t, a), lerp(a, b, t)
    sine = torch.where(angle < close, 1, angle.sin())
    arc = torch.sin((1 - t) * angle) / sine * a + torch.sin(t * angle) / sine * b
    return torch.where(angle < close, straight, arc)


def _column(t: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=like.dtype, device=like.device)[..., None]


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape[-1:] != b.shape[-1:]:
        raise InvalidValue(f"expected latents of one width, got {tuple(a.shape)} and {tuple(b.shape)}")
