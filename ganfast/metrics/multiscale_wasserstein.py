r"""Sliced Wasserstein distance of the patches at each scale of images (Karras et al. 2018, section 5).

Images become a Laplacian pyramid (Burt and Adelson 1983): each level is what halving takes away, the last one what is left. At
each level random 7 x 7 patches of both sets, with every channel brought to mean 0 and deviation 1, are compared along random
directions by W_1, and the mean is reported in thousandths. Fine levels tell of texture and noise, coarse ones of shapes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.rows import pixels
from ganfast.metrics.wasserstein import projected_powers

PATCH = 7
_IMAGES = 64  # whose pyramid is there at a time
_PROJECTED = 1 << 24  # patches times directions that are sorted at a time: 128 MB, and some copies of it


class Scales(NamedTuple):
    """The mean over all levels, and each by its size in pixels, the finest first; in thousandths."""

    mean: float
    levels: dict[int, float]


def multiscale_sliced_wasserstein(
    x: Array, y: Array, *, patches: int = 128, directions: int = 512, smallest: int = 16, seed: int = 0
) -> Scales:
    """Distances of uint8 images x (N, H, W, C) and y (M, H, W, C) at every level down to ``smallest`` pixels.

    ``patches`` are taken of each image and level, at random places. The paper took 8,192 images a side and these numbers. What is
    held at a time is one level's patches, in colour 75 KB an image. Both sides draw places of their own, as in the paper, so that
    a set is not quite at distance 0 from itself.

    Raises InvalidType or InvalidValue that names the side: no uint8 images, sizes that differ, no level of at least ``smallest``
    and 7 pixels.
    """
    one, other = pixels(x, "x"), pixels(y, "y")
    if one.shape[1:] != other.shape[1:]:
        raise InvalidValue(f"expected images of one size, got {tuple(one.shape[1:])} in x and {tuple(other.shape[1:])} in y")
    per_image, count = whole(patches, "patches"), whole(directions, "directions")
    least = whole(smallest, "smallest", least=PATCH)
    side = min(one.shape[1:3])
    if side < least:
        raise InvalidValue(f"expected images of at least {least} pixels, got {side}: give smallest={side}, {PATCH} or more")
    sizes = [side]
    while (side := -(-side // 2)) >= least:
        sizes.append(side)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for level, size in enumerate(sizes):
        last = level == len(sizes) - 1
        sets = [_normalised(_patches(images.to(one.device), level, last, per_image, generator)) for images in (one, other)]
        slices = torch.randn(count, sets[0].shape[1], generator=generator, dtype=torch.float64)
        slices = (slices / slices.norm(dim=1, keepdim=True)).to(one.device)
        step = max(1, _PROJECTED // sum(map(len, sets)))
        costs = torch.cat([projected_powers(sets[0], sets[1], some, 1.0) for some in slices.split(step)])
        found[size] = 1000 * costs.mean().item()
    return Scales(math.fsum(found.values()) / len(found), found)


def pyramid_level(images: Tensor, level: int, *, last: bool) -> Tensor:
    """One level of the Laplacian pyramid of images (N, C, H, W), 0 being the finest; the last keeps what others take away."""
    for _ in range(level):
        images = _halved(images)
    return images if last else images - _doubled(_halved(images), images)


def _patches(images: Tensor, level: int, last: bool, per_image: int, generator: torch.Generator) -> Tensor:
    """(N per_image, C, 7, 7), float32."""
    parts = []
    for chunk in images.split(_IMAGES):
        details = pyramid_level(chunk.permute(0, 3, 1, 2).float(), level, last=last)
        count = len(chunk) * per_image
        rows, columns = (
            torch.randint(size - PATCH + 1, (count, 1), generator=generator).to(images.device)
            + torch.arange(PATCH, device=images.device)
            for size in details.shape[2:]
        )
        numbers = torch.arange(count, device=images.device) // per_image
        parts.append(details[numbers[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2))
    return torch.cat(parts)


def _normalised(patches: Tensor) -> Tensor:
    """(n, C 49) with mean 0 and deviation 1 of every channel."""
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True, correction=0)
    return ((patches - mean) / torch.where(deviation > 0, deviation, 1)).flatten(1)


def _halved(images: Tensor) -> Tensor:
    return _smoothed(images)[:, :, ::2, ::2]


def _doubled(images: Tensor, like: Tensor) -> Tensor:
    """The size of ``like``, of which these are every second row and column."""
    spread = torch.zeros_like(like)
    spread[:, :, ::2, ::2] = images
    return 4 * _smoothed(spread)


def _smoothed(images: Tensor) -> Tensor:
    """By the binomial window 1 4 6 4 1 in both directions, reflected at the borders."""
    weights = images.new_tensor([1, 4, 6, 4, 1]) / 16
    single = F.pad(images.flatten(0, 1)[:, None], [2, 2, 2, 2], mode="reflect")
    return F.conv2d(F.conv2d(single, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).view_as(images)
