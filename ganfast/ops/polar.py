r"""The nuclear norm through the polar factor, by products of matrices alone, and with an error bound: its way on a GPU.

For X = U diag(s) V^T and Q = U V^T, tr(Q^T X) is the nuclear norm. An odd polynomial in X changes its singular values alone, so
Q is what iterations of

    X <- a X + b X (X^T X) + c X (X^T X)^2

come to, all of them in float64, which tensor cores multiply too. STEEP steps (Jordan et al. 2024, Muon) multiply small singular
values by 3.4 and keep the large ones between 0.7 and 1.2; then SMOOTH steps, Newton's and Schulz's of fifth degree, take an
error e to 5/2 e^3. Singular values of less than 1e-11 of the largest are not there yet when it ends, and add next to nothing.

What has been reached is checked, not assumed. No Q with |Q|_2 <= 1, which the last steps see to, gives more than the nuclear
norm, and no positive H less than it in

    tr(Q^T X) <= |X|_* <= (tr(X H^-1 X^T) + tr H) / 2,

in which H = the symmetric part of Q^T X, a little off zero, comes close to equality. Where the two are further apart than
TOLERANCE of the norm, the singular values are asked for. That bounds the error of the norm, not of a Frechet distance made of
it: the distance is a difference, and where it is a small share of the traces, it has this error as a share of them.

Lower precision for the first steps was considered and left out: TF32's rounding of the large singular values, 1e-3 of them, is
what the small ones would be lost in, and it is the small ones that take steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]

STEEP: Coefficients = (3.4445, -4.7750, 2.0315)
SMOOTH: Coefficients = (15 / 8, -10 / 8, 3 / 8)
STEPS = (STEEP,) * 20 + (SMOOTH,) * 5  # 3.4445^20 = 5e10
TOLERANCE = 1e-10


def nuclear_norm_bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nuclear norm of x (m, n), float64, from below and from above; NaN where no bound was found. No host sync."""
    x = x if x.shape[0] >= x.shape[1] else x.T
    size = x.abs().sum(dim=0).amax().sqrt() * x.abs().sum(dim=1).amax().sqrt()  # at least the largest singular value
    scaled = x / size
    q = scaled
    for a, b, c in STEPS:
        gram = q.T @ q
        q = a * q + q @ (b * gram + c * (gram @ gram))
    product = q.T @ scaled
    below = product.trace()
    offset = below * (1e-12 / x.shape[1])
    h = (product + product.T) / 2
    h.diagonal().add_(offset)
    factor, failed = torch.linalg.cholesky_ex(h)
    half = torch.linalg.solve_triangular(factor, scaled.T, upper=False)
    above = torch.where(failed == 0, (half.square().sum() + h.trace()) / 2, torch.nan)
    return below * size, above * size


def nuclear_norm_by_polar(x: Tensor) -> Tensor | None:
    """The nuclear norm of x (m, n), float64, with a relative error of at most TOLERANCE; None where that could not be proven."""
    below, above = nuclear_norm_bounds(x)
    return below if bool(above - below <= TOLERANCE * below) else None
