r"""The nuclear norm of a matrix, the sum of its singular values: what the Frechet distance takes nearly all of its time for.

    |X|_* = s_1 + ... + s_k   for X = U diag(s) V^T (m, n), k = min(m, n)

The gradient is the polar factor Q = U V^T. It needs no gaps between singular values, so repeated ones are as safe as others.
Where X is of lower rank r the norm has a kink; the gradient is then U_r V_r^T of the r singular values above rounding, the
shortest of the subgradients. The derivative of Q along H, from that of the decomposition, is

    U_r K V_r^T + (I - U_r U_r^T) H V_r S^-1 V_r^T + U_r S^-1 U_r^T H (I - V_r V_r^T),
    K_ij = (P_ij - P_ji) / (s_i + s_j),   P = U_r^T H V_r,

a linear map that is its own transpose. So there is a second derivative; a third one is refused.

x is (m, n) in float64; the result is a scalar in float64, with an absolute error of a few eps s_1 for each singular value. Only
that is asked for here, never the singular values, which is what the kernel of the CPU makes use of
(``csrc/cpu/nuclear_norm.cpp``); on a GPU the polar factor gives it (:mod:`ganfast.ops.polar`), with an error of at most 1e-10 of
the norm. NaN and Inf make the result NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import CUDA, LIBRARY, Differentiable, register
from ganfast.ops.polar import nuclear_norm_by_polar


def nuclear_norm_reference(x: Tensor) -> Tensor:
    """The sum of the singular values of x (m, n), float64."""
    _check(x)
    finite = x.isfinite().all()
    return torch.where(finite, torch.linalg.svdvals(torch.where(finite, x, 0.0)).sum(), torch.nan)


def _check(x: Tensor) -> None:
    if x.dim() != 2 or x.dtype != torch.float64:
        raise ValueError(f"expected x (m, n) in float64, got {tuple(x.shape)} in {x.dtype}")


def _plain(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x).sum()


def _fake(x: Tensor) -> Tensor:
    _check(x)
    return x.new_empty(())


class _NuclearNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _check(x)
        finite = x.isfinite().all()
        u, s, vh = torch.linalg.svd(torch.where(finite, x, 0.0), full_matrices=False)
        # rounding of x reaches a singular value through the rows and columns that its vectors live in, be they ever so small
        rows, columns = (torch.linalg.vector_norm(torch.where(finite, x, 0.0), dim=dim).sqrt() for dim in (1, 0))
        reached = torch.linalg.vector_norm(u * rows[:, None], dim=0) * torch.linalg.vector_norm(vh * columns, dim=1)
        above = s > torch.finfo(s.dtype).eps * max(x.shape) * reached
        ctx.save_for_backward(x, finite, u * above, torch.where(above, s, torch.inf), vh * above[:, None])
        return torch.where(finite, s.sum(), torch.nan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, finite, *parts = ctx.saved_tensors
        return torch.where(finite, grad * _PolarFactor.apply(x, *parts), torch.nan)


class _PolarFactor(torch.autograd.Function):
    """U_r V_r^T as a function of x, from its decomposition: beyond the rank, u and vh hold zeros and s is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        ctx.save_for_backward(x, u, s, vh)
        return u @ vh

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, None, None, None]:
        return _Derivative.apply(h, *ctx.saved_tensors), None, None, None


class _Derivative(torch.autograd.Function):
    """The page's linear map of h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor, u: Tensor, s: Tensor, vh: Tensor) -> Tensor:
        left, right = u.T @ h, h @ vh.T  # (k, n), (m, k)
        p = left @ vh.T
        within = (p - p.T) / (s[:, None] + s)
        return u @ (within @ vh + (left - p @ vh) / s[:, None]) + (right - u @ p) / s @ vh

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError("the nuclear norm has no third derivative here")


def _on_cuda(x: Tensor) -> Tensor:
    """By the polar factor where that pays and its bound holds."""
    _check(x)
    found = nuclear_norm_by_polar(x) if min(x.shape) >= _SMALL else None
    return nuclear_norm_reference(x) if found is None else found


_SMALL = 64  # a guess: what a library's singular values take no longer for


nuclear_norm = register(
    "nuclear_norm(Tensor x) -> Tensor",
    reference=nuclear_norm_reference,
    fake=_fake,
    differentiable=Differentiable(_NuclearNorm.apply, _plain),
)
if CUDA != "reference":
    LIBRARY.impl("nuclear_norm", _on_cuda, "CUDA")
