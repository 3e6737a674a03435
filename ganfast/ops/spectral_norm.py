r"""Spectral norm by power iteration, for all weights of a network at once (Miyato et al. 2018, algorithm 1).

For a weight W (m, n) with singular vectors u (m,) and v (n,), one iteration is

    u <- W v / |W v|,    v <- W^T u / |W^T u|,    sigma <- |W^T u|.

The textbook's last line is ``sigma = u^T W v``, a third product with W. It is redundant: v is W^T u over its own length, so
``u^T W v = (W^T u)^T v = |W^T u|``, which normalising v has computed already. The order is PyTorch's (u first), so that u and v
can be exchanged with its parametrization at any moment; Miyato's (v first) is the same sequence of vectors half a step apart.

The layer uses W / sigma with u and v held constant, and with sigma = u^T W v the gradient is

    dW = G / sigma - (<G, W> / sigma^2) u v^T     for G the gradient by W / sigma.

Two ops: :func:`power_iteration` moves the vectors and has no gradient, :func:`spectral_norm` does the same and besides returns
every weight over its sigma, with a gradient of any order. Both take a list of weights, so that a whole network costs one call;
``u`` and ``v`` hold the vectors of all of them, one after the other. ``dims[i]`` says along which dimension of ``weights[i]`` the
rows run, the output channels: W is ``matrix(weights[i], dims[i])``, and never copied into that shape.

All weights of a call have one dtype and one device. u, v and sigma are float32 whatever the weights are (float64 for float64):
the low types' rounding of sigma would scale every output of the layer. W v of length at most ``eps`` has no direction: the vector
that was there is kept, and the weight is not scaled. So a zero matrix stays zero, has finite gradients, and is normalised as
soon as it grows. NaN and Inf in a weight reach its u, v and sigma.

Bytes that must move, for |W| the bytes of all weights: |W| for an iteration, because W^T (W v) needs a row of W only while its
share of W v is there; |W| more to write the normalised ones, as the next reading of a weight finds it in a cache; 3 |W| backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import Differentiable, below_autograd, register

Tensors = Sequence[Tensor]


def matrix(weight: Tensor, dim: int) -> Tensor:
    """A weight of any rank as the matrix whose rows run along ``dim``: the output channels."""
    return weight.movedim(dim, 0).flatten(1)


def vectors(weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """The u (m,) and v (n,) of every weight."""
    shapes = [
        (w.shape[dim], math.prod(w.shape[:dim]) * math.prod(w.shape[dim + 1 :])) for w, dim in zip(weights, dims, strict=True)
    ]
    us, vs = (x.split([shape[side] for shape in shapes]) for side, x in enumerate((u, v)))
    return list(zip(us, vs, strict=True))


# ---- the power iteration, and the division


def power_iteration_reference(
    weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """New u, new v and the sigmas (L,) after ``n_iterations``; with none at all, copies and ``u^T W v``."""
    if n_iterations < 0:
        raise ValueError(f"expected n_iterations >= 0, got {n_iterations}")
    with torch.no_grad(), torch.autocast(u.device.type, enabled=False):
        pairs = vectors(weights, u, v, dims)
        steps = [
            _iterate(matrix(w, dim).to(u.dtype), *pair, n_iterations, eps)
            for w, pair, dim in zip(weights, pairs, dims, strict=True)
        ]
        if not steps:
            return u.clone(), v.clone(), u.new_empty(0)
        new_us, new_vs, sigmas = zip(*steps, strict=True)
        return torch.cat(new_us), torch.cat(new_vs), torch.stack(sigmas)


def _iterate(w: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if n_iterations == 0:
        return u, v, u.dot(w.mv(v))
    for _ in range(n_iterations):
        u, _ = _direction(w.mv(v), u, eps)
        v, sigma = _direction(w.t().mv(u), v, eps)
    return u, v, sigma


def _direction(vector: Tensor, fallback: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``vector`` over its length, or ``fallback`` where that is nothing; and the length."""
    length = torch.linalg.vector_norm(vector, dtype=torch.float64).to(vector.dtype)  # float32's squares end at 1e19 squared
    return torch.where(length <= eps, fallback, vector / length), length


def _power_iteration_fake(
    weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v), u.new_empty(len(weights))


def spectral_norm_reference(
    weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float, dtype: torch.dtype | None
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Every weight over its sigma, in the weight's layout, and in ``dtype`` or the weight's own; and what the iteration gives."""
    u, v, sigmas = power_iteration_reference(weights, u, v, dims, n_iterations, eps)
    return _divide(weights, sigmas, eps, dtype), u, v, sigmas


def _divide(weights: Tensors, sigmas: Tensor, eps: float, dtype: torch.dtype | None) -> list[Tensor]:
    scales = torch.where(sigmas.abs() <= eps, 1.0, sigmas).unbind()
    return [(w.to(sigmas.dtype) / scale).to(dtype or w.dtype) for w, scale in zip(weights, scales, strict=True)]


def _spectral_norm_plain(
    weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float, dtype: torch.dtype | None
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    u, v, sigmas = power_iteration_reference([w.detach() for w in weights], u, v, dims, n_iterations, eps)
    if not weights:
        return [], u, v, sigmas
    products = [
        pair_u.dot(matrix(w, dim).to(u.dtype).mv(pair_v))
        for w, (pair_u, pair_v), dim in zip(weights, vectors(weights, u, v, dims), dims, strict=True)
    ]
    return _divide(weights, torch.stack(products), eps, dtype), u, v, sigmas


def _spectral_norm_fake(
    weights: Tensors, u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float, dtype: torch.dtype | None
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    normalised = [torch.empty_like(w, dtype=dtype or w.dtype) for w in weights]
    return normalised, *_power_iteration_fake(weights, u, v, dims, n_iterations, eps)


class _SpectralNorm(torch.autograd.Function):
    """``constants`` takes up what has no gradient: u, v and the sigmas.

    One node serves all weights, and parts of a network may go backward one after the other: the weights are kept here, where a
    first backward pass does not free them, and their versions are compared as autograd would.
    """

    @staticmethod
    def forward(ctx: Any, constants: list[Tensor], arguments: tuple[Any, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        normalised, *found = below_autograd(spectral_norm.overload, list(weights), *arguments)
        constants += found
        _, _, dims, _, eps, _ = arguments
        ctx.set_materialize_grads(False)
        ctx.weights, ctx.versions = weights, _versions(weights)
        ctx.constants = (*found, dims, eps)
        return tuple(normalised)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if _versions(ctx.weights) != ctx.versions:
            raise RuntimeError("a spectrally normalised weight was modified in place between its forward and its backward pass")
        wanted = [i for i, g in enumerate(grads) if g is not None and ctx.needs_input_grad[2 + i]]
        found: list[Tensor | None] = [None] * len(grads)
        chosen = [grads[i] if grads[i].layout == torch.strided else grads[i].to_dense() for i in wanted]  # type: ignore[union-attr]
        weights, *constants = _chosen(wanted, ctx.weights, *ctx.constants)
        for i, gradient in zip(wanted, spectral_norm_backward(chosen, weights, *constants), strict=True):
            found[i] = gradient
        return None, None, *found


def _versions(weights: Tensors) -> list[int]:
    return [] if torch.compiler.is_compiling() else [0 if w.is_inference() else w._version for w in weights]


def _chosen(
    wanted: list[int], weights: Tensors, u: Tensor, v: Tensor, sigmas: Tensor, dims: Sequence[int], eps: float
) -> tuple[Any, ...]:
    """The arguments for some of the weights."""
    if len(wanted) == len(weights):
        return list(weights), u, v, sigmas, dims, eps
    pairs = vectors(weights, u, v, dims)
    us, vs = (torch.cat([pairs[i][side] for i in wanted] or [u.new_empty(0)]) for side in (0, 1))
    return [weights[i] for i in wanted], us, vs, sigmas[wanted], [dims[i] for i in wanted], eps


def _differentiable(weights: Tensors, *arguments: Any) -> tuple[Any, ...]:
    constants: list[Tensor] = []
    normalised = _SpectralNorm.apply(constants, arguments, *weights)
    return list(normalised), *constants


# ---- the gradient


def spectral_norm_backward_reference(
    grads: Tensors, weights: Tensors, u: Tensor, v: Tensor, sigmas: Tensor, dims: Sequence[int], eps: float
) -> list[Tensor]:
    """The gradients by the weights, in their dtype and layout, from those by the normalised ones."""
    found = _backward_plain(grads, weights, u, v, sigmas, dims, eps)
    return [torch.empty_like(w).copy_(gradient) for w, gradient in zip(weights, found, strict=True)]


def _backward_plain(
    grads: Tensors, weights: Tensors, u: Tensor, v: Tensor, sigmas: Tensor, dims: Sequence[int], eps: float
) -> list[Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        return [
            _weight_gradient(g.to(u.dtype), w.to(u.dtype), *pair, sigma, dim, eps).to(w.dtype)
            for g, w, pair, sigma, dim in zip(grads, weights, vectors(weights, u, v, dims), sigmas.unbind(), dims, strict=True)
        ]


def _weight_gradient(g: Tensor, w: Tensor, u: Tensor, v: Tensor, sigma: Tensor, dim: int, eps: float) -> Tensor:
    """``G / sigma - (<G, W> / sigma^2) u v^T``; G itself where the weight was not scaled."""
    nothing = sigma.abs() <= eps
    scale = torch.where(nothing, 1.0, sigma)
    c = torch.where(nothing, 0.0, (g * w).sum() / scale.square())
    others = [size for axis, size in enumerate(w.shape) if axis != dim]
    outer = torch.outer(u, v).reshape(w.shape[dim], *others).movedim(0, dim)
    return g / scale - c * outer


def _backward_fake(
    grads: Tensors, weights: Tensors, u: Tensor, v: Tensor, sigmas: Tensor, dims: Sequence[int], eps: float
) -> list[Tensor]:
    return [torch.empty_like(w) for w in weights]


class _Backward(torch.autograd.Function):
    """Its backward is the derivative of the page's formula, sigma = u^T W v included, by autograd: rare, and so of any order."""

    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.constants = constants
        grads, weights = _halves(tensors)
        return tuple(below_autograd(spectral_norm_backward.overload, grads, weights, *constants))

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
        grads, weights = _halves(ctx.saved_tensors)
        us, vs, _, dims, eps = ctx.constants
        results = []
        with torch.enable_grad(), torch.autocast(us.device.type, enabled=False):
            pairs = vectors(weights, us, vs, dims)
            for gg, g, w, (u, v), dim in zip(second, grads, weights, pairs, dims, strict=True):
                wide_g, wide_w = _variable(g, u.dtype), _variable(w, u.dtype)
                sigma = u.dot(matrix(wide_w, dim).mv(v))
                first = _weight_gradient(wide_g, wide_w, u, v, sigma, dim, eps)
                results.append(torch.autograd.grad(first, (wide_g, wide_w), gg.to(u.dtype), create_graph=True))
        by_grads = [by_g.to(g.dtype) for (by_g, _), g in zip(results, grads, strict=True)]
        by_weights = [by_w.to(w.dtype) for (_, by_w), w in zip(results, weights, strict=True)]
        return None, *by_grads, *by_weights


def _differentiable_backward(grads: Tensors, weights: Tensors, *constants: Any) -> list[Tensor]:
    return list(_Backward.apply(constants, *grads, *weights))


def _variable(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` as a variable of its own: G may be a function of W, and by W alone means that G stands still."""
    return x.to(dtype).view_as(x) if x.requires_grad else x.detach().to(dtype).requires_grad_()


def _halves(tensors: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    n = len(tensors) // 2
    return list(tensors[:n]), list(tensors[n:])


power_iteration = register(
    "power_iteration(Tensor[] weights, Tensor u, Tensor v, int[] dims, int n_iterations, float eps) -> (Tensor, Tensor, Tensor)",
    reference=power_iteration_reference,
    fake=_power_iteration_fake,
)
spectral_norm = register(
    "spectral_norm(Tensor[] weights, Tensor u, Tensor v, int[] dims, int n_iterations, float eps, ScalarType? dtype)"
    " -> (Tensor[], Tensor, Tensor, Tensor)",
    reference=spectral_norm_reference,
    fake=_spectral_norm_fake,
    differentiable=Differentiable(_differentiable, _spectral_norm_plain),
)
spectral_norm_backward = register(
    "spectral_norm_backward(Tensor[] grads, Tensor[] weights, Tensor u, Tensor v, Tensor sigmas, int[] dims, float eps)"
    " -> Tensor[]",
    reference=spectral_norm_backward_reference,
    fake=_backward_fake,
    differentiable=Differentiable(_differentiable_backward, _backward_plain),
)
