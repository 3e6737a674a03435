r"""A factor F of a covariance, S = F F^T, whatever its rank.

A covariance of fewer samples than features is singular, and rounding makes its zero eigenvalues small numbers of either sign. A
factor with as many columns as S has rank leaves them out: a zero that rounding turned into 1e-16 would come back as 1e-8 in a
product of factors. The reference takes F = W diag(w)^(1/2) from the eigenvectors, the kernel of the CPU Cholesky's factor with
complete pivoting (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 10.3), which stops where nothing is left
but rounding. The two differ by a rotation on the right, which nothing that is computed from F F^T can see.

The gradient is that of such functions alone. For them a G exists with dF = 2 G F, and with A = dF F^+ / 2 and P = F F^+

    dS = A + A^T - P A P,

G but for its part outside of S's range on both sides, where S cannot be moved without a kink; there it is zero.

covariance (n, n), float64, is taken for its symmetric part S. The result is F (n, n), zero from column ``rank`` on; the rank, an
int64; ``rest``, the largest entry of S - F F^T, where a covariance has nothing but rounding, and anything larger is a negative
eigenvalue; and ``asymmetry``, the largest difference of an entry and its mirror image. NaN and Inf make F and the rest NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import Differentiable, below_autograd, register

Found = tuple[Tensor, Tensor, Tensor, Tensor]


def noise_share(size: int) -> float:
    """Below this share of the largest eigenvalue, or diagonal entry, nothing is known of one but that it is about zero."""
    return torch.finfo(torch.float64).eps * size


def covariance_factor_reference(covariance: Tensor) -> Found:
    """F (n, n), its rank, the rest and the asymmetry of ``covariance`` (n, n), float64."""
    _check(covariance)
    size = len(covariance)
    if size == 0 or not covariance.isfinite().all():
        nothing = torch.full_like(covariance, torch.nan, memory_format=torch.contiguous_format)
        unknown = covariance.new_full((), torch.nan)
        return nothing, torch.full((), size, device=covariance.device), unknown, unknown.clone()
    symmetric = covariance / 2 + covariance.T / 2
    values, vectors = torch.linalg.eigh(symmetric)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > noise_share(size) * values[0]
    rest = vectors * torch.where(kept, 0.0, values) @ vectors.T
    factor = (vectors * torch.where(kept, values, 0.0).sqrt()).contiguous()
    return factor, kept.sum(), rest.abs().amax(), (covariance - covariance.T).abs().amax()


def _check(covariance: Tensor) -> None:
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1] or covariance.dtype != torch.float64:
        raise ValueError(f"expected a covariance (n, n) in float64, got {tuple(covariance.shape)} in {covariance.dtype}")


def _fake(covariance: Tensor) -> Found:
    _check(covariance)
    factor = torch.empty_like(covariance, memory_format=torch.contiguous_format)
    return factor, covariance.new_empty((), dtype=torch.int64), covariance.new_empty(()), covariance.new_empty(())


class _CovarianceFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, covariance: Tensor) -> Found:
        factor, rank, *told = below_autograd(covariance_factor.overload, covariance)
        ctx.save_for_backward(factor, rank)
        ctx.mark_non_differentiable(rank, *told)
        return factor, rank, *told

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> Tensor:
        found: Tensor = _Gradient.apply(grad, *ctx.saved_tensors)
        return found


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, factor: Tensor, rank: Tensor) -> Tensor:
        kept = slice(int(rank))
        q, r = torch.linalg.qr(factor[:, kept])
        # A in two steps: dF R^-1 / 2 is A's part from Q's range, so A = (dF R^-1 / 2) Q^T, and P A = Q (Q^T A)
        from_range = torch.linalg.solve_triangular(r, grad[:, kept], upper=True, left=False) / 2
        a = from_range @ q.T
        within = q @ (q.T @ from_range) @ q.T
        return a + a.T - (within + within.T) / 2

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Tensor:
        raise RuntimeError("a covariance's factor has no second derivative")


def _plain(covariance: Tensor) -> Found:
    raise NotImplementedError(
        "a covariance's factor has a gradient for loss.backward() alone, none within torch.func's transforms"
    )


covariance_factor = register(
    "covariance_factor(Tensor covariance) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=covariance_factor_reference,
    fake=_fake,
    differentiable=Differentiable(_CovarianceFactor.apply, _plain),
)
