r"""Frechet distance between two Gaussians, the formula behind FID (Dowson and Landau 1982; Heusel et al. 2017, equation 6).

    d = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

S1 S2 is not symmetric. Its square root by Schur decomposition is slow, complex by rounding, and fails where S1 S2 is singular, as
it always is with fewer samples than features. With factors S1 = A A^T and S2 = B B^T, S1 S2 has the non-zero eigenvalues of
(A^T B)(A^T B)^T, so

    tr (S1 S2)^(1/2) = the sum of the singular values of A^T B

for every pair of covariances. A and B come from the eigenvectors of S1 and S2. Singular values of A^T B rather than roots of
the eigenvalues of its square: a zero that rounding turns into 1e-16 would come out of the root as 1e-8. All in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.errors import InvalidValue

Array = NDArray[Any] | Tensor

# how far a covariance kept in float32 may be from symmetric and from positive, as a share of its largest entry or eigenvalue
_FLOAT32_ROUNDING = 1e-5


def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """Squared Frechet distance of N(mu1, cov1) and N(mu2, cov2), in squared feature units; at least zero.

    Means (D,) and covariances (D, D), arrays or tensors of any floating type; covariances may be singular. Raises InvalidValue
    that names the argument: shapes that do not fit, NaN or Inf, a covariance that is not symmetric or has a negative eigenvalue.
    """
    mean1, factor1 = _mean_and_factor(mu1, cov1, "1")
    mean2, factor2 = _mean_and_factor(mu2, cov2, "2")
    if len(mean1) != len(mean2):
        raise InvalidValue(f"expected as many features on both sides, got {len(mean1)} in mu1 and {len(mean2)} in mu2")
    mean2, factor2 = mean2.to(mean1.device), factor2.to(mean1.device)
    traces = factor1.square().sum() + factor2.square().sum()
    distance = (mean1 - mean2).square().sum() + traces - 2 * torch.linalg.svdvals(factor1.T @ factor2).sum()
    return float(distance.clamp(min=0))


def frechet_distance_from_features(x: Array, y: Array) -> float:
    """Squared Frechet distance of the Gaussians fitted to features x (N, D) and y (M, D); their covariances divide by N - 1.

    Raises InvalidValue that names the side: fewer than two samples, NaN or Inf, shapes that do not fit.
    """
    return frechet_distance(*feature_statistics(x, "x"), *feature_statistics(y, "y"))


def feature_statistics(features: Array, side: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64; ``side`` is what errors call them."""
    rows = tensor(features)
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise InvalidValue(f"{side}: expected features (N, D), got {tuple(rows.shape)}")
    if len(rows) < 2:
        raise InvalidValue(f"{side}: a covariance needs at least two samples, got {len(rows)}")
    rows = _finite(rows, side)
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def tensor(array: Array) -> Tensor:
    """The values without their graph. Arrays are copied, since torch warns of read-only ones, such as memory maps."""
    return array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


def _mean_and_factor(mu: Array, cov: Array, side: str) -> tuple[Tensor, Tensor]:
    """The mean (D,), and A (D, D) with A A^T the covariance."""
    mean, covariance = tensor(mu), tensor(cov)
    if mean.dim() != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        got = f"mu{side} {tuple(mean.shape)} and cov{side} {tuple(covariance.shape)}"
        raise InvalidValue(f"expected mu{side} (D,) and cov{side} (D, D), got {got}")
    mean, covariance = _finite(mean, f"mu{side}"), _finite(covariance, f"cov{side}")
    asymmetry, largest = (covariance - covariance.T).abs().max().item(), covariance.abs().max().item()
    if asymmetry > _FLOAT32_ROUNDING * largest:
        raise InvalidValue(f"cov{side} is not symmetric: entries differ from their mirror image by up to {asymmetry:.3g}")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_FLOAT32_ROUNDING * values[-1].abs():
        raise InvalidValue(f"cov{side} is no covariance: it has the eigenvalue {values[0].item():.3g}")
    # below the rounding of the largest eigenvalue nothing is known of an eigenvalue but that it is about zero
    noise = torch.finfo(values.dtype).eps * len(values) * values[-1]
    return mean, vectors * torch.where(values > noise, values, 0.0).sqrt()


def _finite(array: Tensor, name: str) -> Tensor:
    bad = int((~array.isfinite()).sum())
    if bad:
        raise InvalidValue(f"{name} holds {bad} values that are NaN or Inf, of {array.numel()}")
    return array.double()
