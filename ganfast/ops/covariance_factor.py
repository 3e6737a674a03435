r"""A factor F of a covariance, S = F F^T, whatever its rank.

A covariance of fewer samples than features is singular, and rounding makes its zero eigenvalues small numbers of either sign. A
factor with as many columns as S has rank leaves them out: a zero that rounding turned into 1e-16 would come back as 1e-8 in a
product of factors. What is rounding is told feature by feature, for one may have 1e14 times the variance of another: both ways
keep |S - F F^T|_ij below a few n eps (S_ii S_jj)^(1/2). The kernel of the CPU takes Cholesky's factor with complete pivoting
(Higham 2002, Accuracy and Stability of Numerical Algorithms, section 10.3) and drops a feature where no more than n eps of its
own variance is left. The reference takes W diag(w)^(1/2) from the eigenvectors of S with a diagonal of about one, and turns it
so that, as in the kernel's, columns go from large to small: products of such factors keep their small singular values. The two
differ by a rotation on the right, which nothing that is computed from F F^T can see.

The gradient is that of such functions alone. For them a G exists with dF = 2 G F, and with A = dF F^+ / 2 and P = F F^+

    dS = A + A^T - P A P,

G but for its part outside of S's range on both sides, where S cannot be moved without a kink; there it is zero.

covariance (n, n), float64, is taken for its symmetric part S. The result is F (n, n), zero from column ``rank`` on; the rank, an
int64; ``rest``, the largest entry of S - F F^T, where a covariance has nothing but rounding, and anything larger is a negative
eigenvalue; and ``asymmetry``, the largest difference of an entry and its mirror image. Both are shares of (S_ii S_jj)^(1/2),
within a factor of two, with the largest variance in the place of those that are not positive. NaN and Inf make F, the rest and
the asymmetry NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import Differentiable, below_autograd, register

Found = tuple[Tensor, Tensor, Tensor, Tensor]


def covariance_factor_reference(covariance: Tensor) -> Found:
    """F (n, n), its rank, the rest and the asymmetry of ``covariance`` (n, n), float64."""
    _check(covariance)
    size = len(covariance)
    if size == 0 or not covariance.isfinite().all():
        nothing = torch.full_like(covariance, torch.nan, memory_format=torch.contiguous_format)
        unknown = covariance.new_full((), torch.nan)
        return nothing, torch.full((), size, device=covariance.device), unknown, unknown.clone()
    scale = _powers_of_two(covariance.diagonal())
    correlation = (covariance / scale) / scale[:, None]
    asymmetry = (correlation - correlation.T).abs().amax()
    values, vectors = torch.linalg.eigh(correlation / 2 + correlation.T / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > torch.finfo(torch.float64).eps * size * values[0]
    rest = vectors * torch.where(kept, 0.0, values) @ vectors.T
    root = vectors * torch.where(kept, values, 0.0).sqrt() * scale[:, None]
    order = scale.argsort(descending=True, stable=True)
    factor = torch.empty_like(root, memory_format=torch.contiguous_format)
    factor[order] = torch.linalg.qr(root[order].T, mode="r").R.T
    return factor, kept.sum(), rest.abs().amax(), asymmetry


def _powers_of_two(variances: Tensor) -> Tensor:
    """About the standard deviations, and free of rounding; the largest where a variance is not positive."""
    known = torch.where(variances > 0, variances, variances.amax())
    return torch.where(known > 0, known, 1.0).log2().div(2).round().exp2()


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
        # rows of about one length, as S = D S' D: otherwise the long ones' rounding would be what the short ones are moved by
        scale = _powers_of_two(factor.square().sum(dim=1))[:, None]
        q, r = torch.linalg.qr(factor[:, kept] / scale)
        # A in two steps: dF R^-1 / 2 is A's part from Q's range, so A = (dF R^-1 / 2) Q^T, and P A = Q (Q^T A)
        from_range = torch.linalg.solve_triangular(r, grad[:, kept] * scale, upper=True, left=False) / 2
        a = from_range @ q.T
        within = q @ (q.T @ from_range) @ q.T
        return ((a + a.T - (within + within.T) / 2) / scale) / scale.T

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
