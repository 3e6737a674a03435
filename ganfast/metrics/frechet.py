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

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.arrays import LARGEST, Array, as_floats, as_tensor, check_numbers
from ganfast.metrics.moments import Moments
from ganfast.ops.covariance_factor import covariance_factor
from ganfast.ops.nuclear_norm import nuclear_norm

# How far a covariance may be from symmetric and from positive, as a share of its two features' deviations: what it is off by
# that was kept in float32 on its way, whatever type it has now.
_ROUNDING = 1e-5


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

    Means (D,) of any type of real numbers, covariances (D, D) in float32 or float64, arrays or tensors; covariances may be
    singular. What keeping a covariance in float32 on its way may have done to it is forgiven. Returns a float, or a scalar tensor
    in float64 with a graph where an argument requires a gradient. That is of first order; where a covariance is singular it is
    the gradient within its range, beyond which the distance has a kink.

    Raises InvalidType that names the argument: no real numbers, covariances of another type. Raises InvalidValue that does:
    shapes that do not fit, NaN or Inf, numbers too large to square, a covariance that is not symmetric or has a negative
    eigenvalue. Dual numbers and torch.func's transforms have no way through a covariance: NotImplementedError.
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
    gradient can be differentiated once more. Where scales of features span seven decades on both sides, the gradients of the
    smallest ones are not accurate.

    Raises InvalidType that names the side: no real numbers. Raises InvalidValue that does: fewer than two samples, NaN or Inf,
    numbers too large to square, shapes that do not fit.
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
    value = distance.detach()
    if not value.isfinite():
        raise InvalidValue(f"the distance of {name} and {other_name} is {value.item()}: numbers too large to square")
    # below zero is rounding, and no reason to forget the gradient
    return value.clamp(min=0) + (distance - value) if _tracked(distance) else max(0.0, value.item())


def _tracked(tensor: Tensor) -> bool:
    """Whether there is a derivative to keep: a graph, a dual number, or one of torch.func's transforms."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return True
    dual = forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None
    return dual or (tensor.requires_grad and torch.is_grad_enabled())


def fitted(features: Array, side: str) -> Gaussian:
    """The Gaussian of features (N, D); ``side`` is what errors call them."""
    rows = _rows(features, side)
    if len(rows) > rows.shape[1]:
        return _factored(*_mean_and_covariance(rows), side)
    mean = rows.mean(dim=0, dtype=torch.float64)
    factor = ((rows - mean) / (len(rows) - 1) ** 0.5).T
    return Gaussian(mean, factor.square().sum(), factor)


def feature_statistics(features: Array, side: str) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64; ``side`` is what errors call them."""
    return _mean_and_covariance(_rows(features, side))


def _mean_and_covariance(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(dim=0, dtype=torch.float64)
    if not _tracked(rows):
        moments = Moments.of_none(mean)
        moments.add(rows)
        return moments.mean, moments.scatter / (moments.count - 1)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def _rows(features: Array, side: str) -> Tensor:
    rows = as_tensor(features, side)
    if rows.dim() != 2 or rows.shape[1] == 0:
        raise InvalidValue(f"{side}: expected features (N, D), got {tuple(rows.shape)}")
    if len(rows) < 2:
        raise InvalidValue(f"{side}: a covariance needs at least two samples, got {len(rows)}")
    rows = as_floats(rows)
    check_numbers(rows, side)
    return rows


def gaussian(mu: Array, cov: Array, side: str) -> Gaussian:
    """N(mu, cov) with its factor; raises InvalidType and InvalidValue that name ``mu{side}`` and ``cov{side}``."""
    mean, covariance = as_tensor(mu, f"mu{side}"), as_tensor(cov, f"cov{side}")
    if mean.dim() != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        got = f"mu{side} {tuple(mean.shape)} and cov{side} {tuple(covariance.shape)}"
        raise InvalidValue(f"expected mu{side} (D,) and cov{side} (D, D), got {got}")
    if covariance.is_floating_point() and covariance.dtype not in (torch.float32, torch.float64):
        raise InvalidType(f"cov{side}: expected float32 or float64, got {covariance.dtype}")
    mean = mean.double()
    check_numbers(mean, f"mu{side}")
    check_numbers(covariance, f"cov{side}", LARGEST**2)
    return _factored(mean, covariance, f"cov{side}")


def _factored(mean: Tensor, covariance: Tensor, name: str) -> Gaussian:
    covariance = covariance.double()
    factor, rank, rest, asymmetry = covariance_factor(covariance)
    if not asymmetry <= _ROUNDING:
        apart = (covariance - covariance.T).detach().abs().amax().item()
        raise InvalidValue(f"{name} is not symmetric: entries differ from their mirror image by up to {apart:.3g}")
    if not rest <= _ROUNDING or (covariance.diagonal() < 0).any():
        lowest = torch.linalg.eigvalsh(covariance.detach())[0].item()
        raise InvalidValue(f"{name} is no covariance: it has the eigenvalue {lowest:.3g}")
    return Gaussian(mean.to(covariance), covariance.trace(), factor[:, : int(rank)])
