r"""Perceptual path length (Karras et al. 2019, section 4.1): how much the image changes along a way through latent space.

    PPL = E [ d( G(path(z1, z2; t)), G(path(z1, z2; t + epsilon)) ) / epsilon^2 ]

for a distance d that is quadratic where it is small, as LPIPS is and as :func:`squared_distance` of any features. In z the path
is a great circle, in a mapped space w a straight line; t is even on [0, 1] (full) or 0 (end). Lengths beyond the 1st and the
99th percentile are left out, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ganfast.errors import InvalidType, InvalidValue, whole
from ganfast.interpolation import lerp, slerp

Generator = Callable[[Tensor], Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]

_PATHS = {"z": slerp, "w": lerp}


class PathLength(NamedTuple):
    """Mean and standard deviation of the lengths that were kept, and all lengths (n,), float64."""

    mean: float
    deviation: float
    lengths: Tensor


def squared_distance(features: Callable[[Tensor], Tensor]) -> Distance:
    """|features(x) - features(y)|^2 (n,) of images, for features (n, ...)."""
    return lambda x, y: (features(x) - features(y)).flatten(1).double().square().sum(dim=1)


def perceptual_path_length(
    generator: Generator,
    latents: Callable[[int], Tensor],
    distance: Distance,
    *,
    n: int = 10_000,
    epsilon: float = 1e-4,
    space: Literal["z", "w"] = "z",
    sampling: Literal["full", "end"] = "full",
    trim: float = 0.01,
    batch: int = 100,
    seed: int = 0,
) -> PathLength:
    """PPL over ``n`` paths of ``generator``, which takes latents (k, D) and gives images (k, ...).

    ``latents(2 n)`` draws from torch's default generators, which are seeded here and given back as they were; for ``space="w"``
    it gives vectors that are mapped already. ``batch`` changes nothing, unless the generator itself draws noise. ``distance``
    takes two batches of images and gives (k,). In float32 every coordinate of a step is off by some 1e-3 of it, which averages
    out; where the generator takes float64, give latents in float64. ``trim`` is the share that is left out at either end.
    Nothing is put into evaluation mode here.

    Raises InvalidValue: another space or sampling, ``epsilon`` not above 0, ``trim`` not from 0 to below 0.5, lengths that are
    NaN or Inf, latents in opposite directions. Raises InvalidType for latents, or distances, of another shape.
    """
    if space not in _PATHS or sampling not in ("full", "end"):
        raise InvalidValue(f"expected space 'z' or 'w' and sampling 'full' or 'end', got {space!r} and {sampling!r}")
    if not 0 < epsilon < 1 or not 0 <= trim < 0.5:
        raise InvalidValue(f"expected epsilon between 0 and 1 and trim from 0 to below 0.5, got {epsilon} and {trim}")
    count, step = whole(n, "n"), whole(batch, "batch")
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(seed)
        one, other, t = _drawn(latents, count, sampling)  # all at once, so that batches decide nothing
        paths = zip(one.split(step), other.split(step), t.split(step), strict=True)
        lengths = torch.cat([_lengths(generator, distance, *path, epsilon, space) for path in paths])
    if bad := int((~lengths.isfinite()).sum()):
        raise InvalidValue(f"{bad} of {count} lengths are NaN or Inf: the generator's images or the distance are")
    kept = _trimmed(lengths, trim)
    return PathLength(kept.mean().item(), kept.std(correction=0).item(), lengths)


def _drawn(latents: Callable[[int], Tensor], n: int, sampling: str) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends (n, D) of each path, and the places (n,) on it, float64."""
    ends = latents(2 * n)
    if not isinstance(ends, Tensor) or ends.dim() != 2 or len(ends) != 2 * n or not ends.is_floating_point():
        got = f"{ends.dtype} {tuple(ends.shape)}" if isinstance(ends, Tensor) else type(ends).__name__
        raise InvalidType(f"expected latents({2 * n}) to be floats ({2 * n}, D), got {got}")
    one, other = ends.chunk(2)
    t = torch.rand(n, dtype=torch.float64) if sampling == "full" else torch.zeros(n, dtype=torch.float64)
    return one, other, t.to(ends.device)


def _lengths(
    generator: Generator, distance: Distance, one: Tensor, other: Tensor, t: Tensor, epsilon: float, space: str
) -> Tensor:
    n, path = len(one), _PATHS[space]
    ways = (path(one.double(), other.double(), place).to(one.dtype) for place in (t, t + epsilon))
    found = distance(*map(generator, ways))
    if found.shape != (n,):
        raise InvalidType(f"expected the distance of two batches of {n} images to be ({n},), got {tuple(found.shape)}")
    return found.double() / epsilon**2


def _trimmed(lengths: Tensor, share: float) -> Tensor:
    """Those between two order statistics, both kept: the last at or below the share, the first at or above its complement."""
    values = lengths.sort().values
    last = len(values) - 1
    # 0.01 * 100 may be a little more than 1
    low, high = math.floor(share * last + 1e-9), math.ceil((1 - share) * last - 1e-9)
    return lengths[(lengths >= values[low]) & (lengths <= values[high])]
