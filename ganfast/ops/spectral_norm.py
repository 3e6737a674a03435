r"""Spectral norm by power iteration, for all weights of a network at once (Miyato et al. 2018, algorithm 1).

For a weight W (m, n) with singular vectors u (m,) and v (n,), one iteration is

    u <- W v / |W v|,    v <- W^T u / |W^T u|,    sigma <- |W^T u|.

The textbook's last line is ``sigma = u^T W v``, a third product with W. It is redundant: v is W^T u over its own length, so
``u^T W v = (W^T u)^T v = |W^T u|``, which normalising v has computed already. The order is PyTorch's (u first), so that u and v
can be exchanged with its parametrization at any moment; Miyato's (v first) is the same sequence of vectors half a step apart.

The layer uses W / sigma with u and v held constant, and with sigma = u^T W v the gradient is

    dW = G / sigma - (<G, W> / sigma^2) u v^T     for G the gradient by W / sigma.

Two ops: :func:`power_iteration` moves the vectors and has no gradient, :func:`spectral_normalise` divides and has one of any
order. Both take lists, one entry a weight, so that a whole network costs one call. ``dims[i]`` says along which dimension of
``weights[i]`` the rows run, the output channels: W is ``matrix(weights[i], dims[i])``, and never copied into that shape.

All weights of a call have one dtype and one device. u, v and sigma are float32 whatever the weights are (float64 for float64):
the low types' rounding of sigma would scale every output of the layer. W v of length at most ``eps`` has no direction: the vector
that was there is kept, and the weight is not scaled. So a zero matrix stays zero, has finite gradients, and is normalised as
soon as it grows. NaN and Inf in a weight reach its u, v and sigma.

Bytes that must move, for |W| the bytes of all weights: 2 |W| for an iteration, 2 |W| to divide, 3 |W| backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import below_autograd, register

Tensors = Sequence[Tensor]


def matrix(weight: Tensor, dim: int) -> Tensor:
    """A weight of any rank as the matrix whose rows run along ``dim``: the output channels."""
    return weight.movedim(dim, 0).flatten(1)


# ---- the power iteration


def power_iteration_reference(
    weights: Tensors, us: Tensors, vs: Tensors, dims: Sequence[int], n_iterations: int, eps: float
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """New u's, new v's and sigmas (L,) after ``n_iterations``; with none at all, copies and ``u^T W v``."""
    with torch.no_grad(), torch.autocast(_device(us), enabled=False):
        steps = [
            _iterate(matrix(w, dim).to(u.dtype), u, v, n_iterations, eps)
            for w, u, v, dim in zip(weights, us, vs, dims, strict=True)
        ]
        new_us, new_vs, sigmas = ([step[i] for step in steps] for i in range(3))
        return new_us, new_vs, torch.stack(sigmas) if sigmas else torch.empty(0)


def _iterate(w: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if n_iterations == 0:
        return u.clone(), v.clone(), u.dot(w.mv(v))
    for _ in range(n_iterations):
        u, _ = _direction(w.mv(v), u, eps)
        v, sigma = _direction(w.t().mv(u), v, eps)
    return u, v, sigma


def _direction(vector: Tensor, fallback: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``vector`` over its length, or ``fallback`` where that is nothing; and the length."""
    length = torch.linalg.vector_norm(vector)
    return torch.where(length <= eps, fallback, vector / length), length


def _power_iteration_fake(
    weights: Tensors, us: Tensors, vs: Tensors, dims: Sequence[int], n_iterations: int, eps: float
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    sigmas = us[0].new_empty(len(us)) if us else torch.empty(0)
    return [torch.empty_like(u) for u in us], [torch.empty_like(v) for v in vs], sigmas


# ---- the division


def normalise_reference(
    weights: Tensors, us: Tensors, vs: Tensors, sigmas: Tensor, dims: Sequence[int], eps: float, dtype: torch.dtype | None
) -> list[Tensor]:
    """Every weight over its sigma, in the weight's layout, and in ``dtype`` or the weight's own."""
    scales = torch.where(sigmas.abs() <= eps, 1.0, sigmas).unbind()
    return [(w.to(sigmas.dtype) / scale).to(dtype or w.dtype) for w, scale in zip(weights, scales, strict=True)]


def _normalise_fake(
    weights: Tensors, us: Tensors, vs: Tensors, sigmas: Tensor, dims: Sequence[int], eps: float, dtype: torch.dtype | None
) -> list[Tensor]:
    return [torch.empty_like(w, dtype=dtype or w.dtype) for w in weights]


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*weights)
        ctx.constants = constants
        return tuple(below_autograd(spectral_normalise, list(weights), *constants))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        us, vs, sigmas, dims, eps, _ = ctx.constants
        return None, *spectral_normalise_backward(list(grads), list(ctx.saved_tensors), us, vs, sigmas, dims, eps)


def normalise_backward_reference(
    grads: Tensors, weights: Tensors, us: Tensors, vs: Tensors, sigmas: Tensor, dims: Sequence[int], eps: float
) -> list[Tensor]:
    """The gradients by the weights, in their dtype and layout, from those by the normalised ones."""
    with torch.autocast(_device(us), enabled=False):
        return [
            torch.empty_like(w).copy_(_weight_gradient(g.to(u.dtype), w.to(u.dtype), u, v, sigma, dim, eps))
            for g, w, u, v, sigma, dim in zip(grads, weights, us, vs, sigmas.unbind(), dims, strict=True)
        ]


def _weight_gradient(g: Tensor, w: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dim: int, eps: float) -> Tensor:
    """``G / sigma - (<G, W> / sigma^2) u v^T``; G itself where the weight was not scaled."""
    nothing = sigma.abs() <= eps
    scale = torch.where(nothing, 1.0, sigma)
    c = torch.where(nothing, 0.0, (g * w).sum() / scale.square())
    others = [size for axis, size in enumerate(w.shape) if axis != dim]
    outer = torch.outer(u, v).reshape(w.shape[dim], *others).movedim(0, dim)
    return g / scale - c * outer


def _normalise_backward_fake(
    grads: Tensors, weights: Tensors, us: Tensors, vs: Tensors, sigmas: Tensor, dims: Sequence[int], eps: float
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


class _NormaliseBackward(torch.autograd.Function):
    """Its backward is the derivative of the page's formula, sigma = u^T W v included, by autograd: rare, and so of any order."""

    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.constants = constants
        grads, weights = _halves(tensors)
        return tuple(below_autograd(spectral_normalise_backward, grads, weights, *constants))

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
        grads, weights = _halves(ctx.saved_tensors)
        us, vs, _, dims, eps = ctx.constants
        results = []
        with torch.enable_grad(), torch.autocast(_device(us), enabled=False):
            for gg, g, w, u, v, dim in zip(second, grads, weights, us, vs, dims, strict=True):
                wide_g, wide_w = (x.to(u.dtype) if x.requires_grad else x.detach().to(u.dtype).requires_grad_() for x in (g, w))
                sigma = u.dot(matrix(wide_w, dim).mv(v))
                first = _weight_gradient(wide_g, wide_w, u, v, sigma, dim, eps)
                results.append(torch.autograd.grad(first, (wide_g, wide_w), gg.to(u.dtype), create_graph=True))
        by_grads = [by_g.to(g.dtype) for (by_g, _), g in zip(results, grads, strict=True)]
        by_weights = [by_w.to(w.dtype) for (_, by_w), w in zip(results, weights, strict=True)]
        return None, *by_grads, *by_weights


def _halves(tensors: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    n = len(tensors) // 2
    return list(tensors[:n]), list(tensors[n:])


def _device(tensors: Tensors) -> str:
    return tensors[0].device.type if tensors else "cpu"


power_iteration = register(
    "power_iteration(Tensor[] weights, Tensor[] us, Tensor[] vs, int[] dims, int n_iterations, float eps)"
    " -> (Tensor[], Tensor[], Tensor)",
    reference=power_iteration_reference,
    fake=_power_iteration_fake,
)
spectral_normalise_backward = register(
    "spectral_normalise_backward(Tensor[] grads, Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor sigmas, int[] dims,"
    " float eps) -> Tensor[]",
    reference=normalise_backward_reference,
    fake=_normalise_backward_fake,
    differentiable=lambda grads, weights, *constants: list(_NormaliseBackward.apply(constants, *grads, *weights)),
)
spectral_normalise = register(
    "spectral_normalise(Tensor[] weights, Tensor[] us, Tensor[] vs, Tensor sigmas, int[] dims, float eps, ScalarType? dtype)"
    " -> Tensor[]",
    reference=normalise_reference,
    fake=_normalise_fake,
    differentiable=lambda weights, *constants: list(_Normalise.apply(constants, *weights)),
)
