r"""Spectral norm by power iteration, for many weights at once (Miyato et al. 2018, algorithm 1).

For a weight W (m, n) with singular vectors u (m,) and v (n,), one iteration is

    u <- W v / |W v|,    v <- W^T u / |W^T u|,    sigma <- |W^T u|.

The textbook's last line is ``sigma = u^T W v``, a third product with W. It is redundant: v is W^T u over its own length, so
``u^T W v = (W^T u)^T v = |W^T u|``, which normalising v has computed already. The order is PyTorch's (u first), so that u and v
can be exchanged with its parametrization at any moment; Miyato's (v first) is the same sequence of vectors half a step apart.

The layer uses W / sigma with u and v held constant, and with sigma = u^T W v the gradient is

    dW = G / sigma - (<G, W> / sigma^2) u v^T     for G the gradient by W / sigma,

which autograd derives from :func:`normalise`, to any order.

u, v and sigma are float32 whatever the weight's type is (float64 for float64): the low types' rounding of sigma would
scale every output of the layer. W v of length at most ``eps`` has no direction: the vector that was there is kept, and the weight
is not scaled. So a zero matrix stays zero, has finite gradients, and is normalised as soon as it grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def reference(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor], n_iterations: int, eps: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """``n_iterations`` power iterations for every matrix: new u's, new v's, and sigmas (0-dim); the arguments are left alone.

    ``weights[i]`` is (m_i, n_i) of any floating type, ``us[i]`` (m_i,) and ``vs[i]`` (n_i,). With no iterations at all, sigma is
    ``u^T W v`` for the given vectors. NaN and Inf in a weight reach all three results.
    """
    results = [_iterate(weight, u, v, n_iterations, eps) for weight, u, v in zip(weights, us, vs, strict=True)]
    new_us, new_vs, sigmas = ([result[i] for result in results] for i in range(3))
    return new_us, new_vs, sigmas


def normalise(weight: Tensor, u: Tensor, v: Tensor, dim: int, eps: float) -> Tensor:
    """``weight / (u^T W v)`` in the weight's shape and type, W being ``matrix(weight, dim)``; u and v are constants."""
    with torch.autocast(weight.device.type, enabled=False):
        wide = weight.to(u.dtype)
        sigma = u.dot(matrix(wide, dim).mv(v))
        return (wide / torch.where(sigma.abs() <= eps, 1.0, sigma)).to(weight.dtype)


def matrix(weight: Tensor, dim: int) -> Tensor:
    """A weight of any rank as the matrix whose rows run along ``dim``: the output channels."""
    return weight.movedim(dim, 0).flatten(1)


def _iterate(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        wide = weight.to(u.dtype)
        sigma = u.dot(wide.mv(v)) if n_iterations == 0 else u.new_zeros(())
        for _ in range(n_iterations):
            u, _ = _direction(wide.mv(v), u, eps)
            v, sigma = _direction(wide.t().mv(u), v, eps)
        return u, v, sigma


def _direction(vector: Tensor, fallback: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``vector`` over its length, or ``fallback`` where that is nothing; and the length."""
    length = torch.linalg.vector_norm(vector)
    return torch.where(length <= eps, fallback, vector / length), length
