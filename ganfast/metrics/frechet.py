r"""Frechet distance between two Gaussians, the formula behind FID (Dowson and Landau 1982; Heusel et al. 2017, equation 6).

    d = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

S1 S2 is not symmetric. Its square root by Schur decomposition is slow, complex by rounding, and fails where S1 S2 is singular, as
it always is with fewer samples than features. With factors S1 = A A^T and S2 = B B^T, S1 S2 has the non-zero eigenvalues of
(A^T B)(A^T B)^T, so

    tr (S1 S2)^(1/2) = the nuclear norm of A^T B, the sum of its singular values,

for every pair of covariances and every pair of factors: of n centred samples X (n, D), X^T / sqrt(n - 1) is one, and with
n <= D no covariance need be formed; otherwise :mod:`ganfast.ops.covariance_factor` finds one. Singular values of A^T B rather
than roots of the eigenvalues of its square: a zero that rounding turns into 1e-16 would come out of the root as 1e-8. All in
float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics.moments import Moments
from ganfast.ops.covariance_factor import covariance_factor
from ganfast.ops.nuclear_norm import nuclear_norm

Array = NDArray[Any] | Tensor

# how far a covariance kept in float32 may be from symmetric and from positive, as a share of its largest entry, a diagonal one
_FLOAT32_ROUNDING = 1e-5


class Gaussian(NamedTuple):
    """What a distance needs of one side: mean (D,), the covariance's trace, and F (D, r) with F F^T the covariance; float64."""

    mean: Tensor
    trace: Tensor
    factor: Tensor


@overload
def frechet_distance(mu1: NDArray[Any], cov1: NDArray[Any], mu2: NDArray[Any], cov2: NDArray[Any]) -> float: ...
@overload
def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> Any: ...
def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> Any:
    """Squared Frechet distance of N(mu1, cov1) and N(mu2, cov2), in squared feature units; at least zero.

    Means (D,) and covariances (D, D), arrays or tensors of any floating type; covariances may be singular. Returns a float, or
    a scalar tensor in float64 with a graph where an argument requires a gradient. That is of first order; where a covariance is
    singular it is the gradient within its range, beyond which the distance has a kink.

    Raises InvalidValue that names the argument: shapes that do not fit, NaN or Inf, a covariance that is not symmetric or has a
    negative eigenvalue.
    """
    return distance_between(gaussian(mu1, cov1, "1"), gaussian(mu2, cov2, "2"), "mu1", "mu2")


@overload
def frechet_distance_from_features(x: NDArray[Any], y: NDArray[Any]) -> float: ...
@overload
def frechet_distance_from_features(x: Array, y: Array) -> Any: ...
def frechet_distance_from_features(x: Array, y: Array) -> Any:
    """Squared Frechet distance of the Gaussians fitted to features x (N, D) and y (M, D); their covariances divide by N - 1.

    Returns a float, or a scalar tensor in float64 with a graph where x or y requires a gradient: a loss on features. A side of
    at most D samples is never made into a covariance, and takes time in proportion to D; where both sides are such, the
    gradient can be differentiated once more.

    Raises InvalidValue that names the side: fewer than two samples, NaN or Inf, shapes that do not fit.
    """
    return distance_between(fitted(x, "x"), fitted(y, "y"), "x", "y")


def distance_between(one: Gaussian, other: Gaussian, name: str, other_name: str) -> Any:
    """The squared Frechet distance as a float, or as a tensor where it has a graph; the names are what errors call the sides."""
    if len(one.mean) != len(other.mean):
        sizes = f"{len(one.mean)} in {name} and {len(other.mean)} in {other_name}"
        raise InvalidValue(f"expected as many features on both sides, got {sizes}")
    other = Gaussian(*(part.to(one.mean.device) for part in other))
    shared = nuclear_norm(one.factor.T @ other.factor)
    distance = (one.mean - other.mean).square().sum() + one.trace + other.trace - 2 * shared
    return distance.clamp(min=0) if distance.requires_grad else max(0.0, distance.item())


def fitted(features: Array, side: str) -> Gaussian:
    """The Gaussian of features (N, D); ``side`` is what errors call them."""
    rows = _rows(features, side)
    if len(rows) > rows.shape[1]:
        return gaussian(*_mean_and_covariance(rows), side)
    mean = rows.mean(dim=0, dtype=torch.float64)
    factor = ((rows - mean) / (len(rows) - 1) ** 0.5).T
    return Gaussian(mean, factor.square().sum(), factor)


def feature_statistics(features: Array, side: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64; ``side`` is what errors call them."""
    return _mean_and_covariance(_rows(features, side))


def _mean_and_covariance(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=0, dtype=torch.float64)
    if not (rows.requires_grad and torch.is_grad_enabled()):
        moments = Moments.of_none(mean)
        moments.add(rows)
        return moments.mean, moments.scatter / (moments.count - 1)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def _rows(features: Array, side: str) -> Tensor:
    rows = _with_graph(features)
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise InvalidValue(f"{side}: expected features (N, D), got {tuple(rows.shape)}")
    if len(rows) < 2:
        raise InvalidValue(f"{side}: a covariance needs at least two samples, got {len(rows)}")
    check_finite(rows, side)
    return rows if rows.is_floating_point() else rows.double()


def gaussian(mu: Array, cov: Array, side: str) -> Gaussian:
    """N(mu, cov) with its factor; raises InvalidValue that names ``mu{side}`` and ``cov{side}``."""
    mean, covariance = _with_graph(mu), _with_graph(cov)
    if mean.dim() != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        got = f"mu{side} {tuple(mean.shape)} and cov{side} {tuple(covariance.shape)}"
        raise InvalidValue(f"expected mu{side} (D,) and cov{side} (D, D), got {got}")
    check_finite(mean, f"mu{side}")
    covariance = covariance.double()
    factor, rank, rest, asymmetry = covariance_factor(covariance)
    if rest.isnan():
        check_finite(covariance, f"cov{side}")
    noise = _FLOAT32_ROUNDING * covariance.detach().diagonal().abs().amax().item()
    if not asymmetry <= noise:
        raise InvalidValue(f"cov{side} is not symmetric: entries differ from their mirror image by up to {asymmetry.item():.3g}")
    if not rest <= noise:
        lowest = torch.linalg.eigvalsh(covariance.detach())[0].item()
        raise InvalidValue(f"cov{side} is no covariance: it has the eigenvalue {lowest:.3g}")
    return Gaussian(mean.to(covariance), covariance.trace(), factor[:, : int(rank)])


def tensor(array: Array) -> Tensor:
    """The values without their graph."""
    return _with_graph(array).detach()


def _with_graph(array: Array) -> Tensor:
    """Arrays are copied, since torch warns of read-only ones, such as memory maps."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


def check_finite(array: Tensor, name: str) -> None:
    """Raises InvalidValue that counts NaN and Inf."""
    if not array.sum(dtype=torch.float64).isfinite() and (bad := int((~array.isfinite()).sum())):
        raise InvalidValue(f"{name} holds {bad} values that are NaN or Inf, of {array.numel()}")
