r"""How alike images are, over several scales (Wang et al. 2003), and so how varied a class's samples are (Odena et al. 2017).

With local means mu, variances s^2 and covariance s_xy under a Gaussian window, of images x and y with values from 0 to L = 255,

    l = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1),    C1 = (0.01 L)^2
    cs = (2 s_xy + C2) / (s_x^2 + s_y^2 + C2),          C2 = (0.03 L)^2
    MS-SSIM = (mean of l cs at the coarsest scale)^beta_M  times  the product over the finer ones of (mean of cs)^beta_j

where each scale halves the one before by averaging, and a mean below zero counts as zero. Windows lie within the image, as in
Wang's own code and TensorFlow's.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array, tensor
from ganfast.metrics.rows import pixels

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al., section 3.2
WINDOW, SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_PIXELS = 1 << 20  # compared at a time: some ten copies of 8 MB

Borders = Literal["none", "reflect"]


class Diversity(NamedTuple):
    """Mean MS-SSIM of random pairs, over all classes alike, and that of each: the lower, the more varied."""

    mean: float
    classes: dict[int, float]


def ms_ssim_diversity(
    images: Array, *, labels: Array | None = None, pairs: int = 100, scales: int | None = None, seed: int = 0
) -> Diversity:
    """Mean MS-SSIM of ``pairs`` random pairs of two different images within each class.

    ``images`` are uint8 (N, H, W, C), ``labels`` (N,) integers; without them all images are of class 0. The paper compares with
    the same figure of the training images. ``scales`` as in :func:`ms_ssim`. Raises InvalidValue: a class of a single image,
    labels that do not fit, and as :func:`ms_ssim`.
    """
    values, count = pixels(images, "images"), whole(pairs, "pairs")
    classes = torch.zeros(len(values), dtype=torch.long) if labels is None else tensor(labels, "labels").cpu()
    if classes.shape != values.shape[:1] or classes.is_floating_point():
        raise InvalidValue(f"labels: expected {len(values)} integers, got {classes.dtype} of shape {tuple(classes.shape)}")
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for label in classes.unique().tolist():
        members = (classes == label).nonzero().flatten()
        n = len(members)
        if n < 2:
            raise InvalidValue(f"images: expected at least two of class {label} to make pairs of, got {n}")
        one = torch.randint(n, (count,), generator=generator)
        other = torch.randint(n - 1, (count,), generator=generator)
        other += other >= one  # any but the same
        found[label] = ms_ssim(values[members[one]], values[members[other]], scales=scales).mean().item()
    return Diversity(math.fsum(found.values()) / len(found), found)


def ms_ssim(
    x: Array,
    y: Array,
    *,
    scales: int | None = None,
    betas: Sequence[float] | None = None,
    borders: Borders = "none",
) -> Tensor:
    """MS-SSIM (N,) of uint8 images x with images y, both (N, H, W, C), in float64; 1 for equal ones.

    The finest of ``scales`` is the image itself, and an 11 x 11 window has to fit into the coarsest: 5 scales need sides of 176
    pixels, 4 of 88, 3 of 44, 2 of 22, 1 of 11. They are 5 unless fewer are given; then the first of Wang's exponents are taken,
    enlarged to the sum of all. ``betas`` gives other exponents, one a scale. ``borders="reflect"`` continues the images of the
    coarsest scale beyond their borders by reflection, as torchmetrics does.

    Raises InvalidType or InvalidValue: no uint8 images, shapes that differ, an image with no room for so many scales.
    """
    one = pixels(x, "x")
    other = pixels(y, "y").to(one.device)
    if one.shape != other.shape:
        raise InvalidValue(f"expected x and y of one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
    if borders not in typing.get_args(Borders):
        raise InvalidValue(f"borders: expected one of {', '.join(typing.get_args(Borders))}, got {borders!r}")
    exponents = _exponents(one, scales, betas)
    step = max(1, _PIXELS // one[0].numel())
    return torch.cat([_compare(a, b, exponents, borders) for a, b in zip(one.split(step), other.split(step), strict=True)])


def most_scales(height: int, width: int) -> int:
    """How many scales of an 11 x 11 window an image has room for; a halving drops an odd row."""
    return (min(height, width) // WINDOW).bit_length()


def _exponents(images: Tensor, scales: int | None, betas: Sequence[float] | None) -> list[float]:
    if betas is None:
        count = len(BETAS) if scales is None else whole(scales, "scales")
        if count > len(BETAS):
            raise InvalidValue(f"scales: expected at most {len(BETAS)}, got {count}: for more, give betas")
        exponents = [beta * sum(BETAS) / sum(BETAS[:count]) for beta in BETAS[:count]]
    else:
        exponents = [float(beta) for beta in betas]
        if scales not in (None, len(exponents)) or not exponents or min(exponents) < 0:
            raise InvalidValue(f"betas: expected one for each scale, none below 0, got {exponents} for {scales or 'the'} scales")
    height, width = images.shape[1:3]
    if len(exponents) > (room := most_scales(height, width)):
        raise InvalidValue(
            f"images of {height} x {width} have room for {room} scales of a window of {WINDOW}, not for {len(exponents)}: "
            + (f"give scales={room}" if room else "enlarge them")
        )
    return exponents


def _compare(x: Tensor, y: Tensor, exponents: Sequence[float], borders: Borders) -> Tensor:
    x, y = (side.permute(0, 3, 1, 2).double() for side in (x, y))
    product = torch.ones(len(x), dtype=torch.float64, device=x.device)
    for scale, beta in enumerate(exponents, 1):
        last = scale == len(exponents)
        margin = WINDOW // 2 if last and borders == "reflect" else 0
        luminance, structure = _similarity(*(F.pad(side, [margin] * 4, mode="reflect") for side in (x, y)))
        means = (luminance * structure if last else structure).mean(dim=(1, 2, 3))
        product *= means.clamp(min=0) ** beta
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """l and cs at every place of the window within images (N, C, H, W)."""
    mean_x, mean_y, square_x, square_y, product = (_blurred(part) for part in (x, y, x * x, y * y, x * y))
    means = mean_x * mean_y
    squares = mean_x**2 + mean_y**2
    structure = (2 * (product - means) + _C2) / ((square_x + square_y - squares).clamp(min=0) + _C2)
    return (2 * means + _C1) / (squares + _C1), structure


def _blurred(images: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights = weights / weights.sum()
    single = images.flatten(0, 1)[:, None]
    blurred = F.conv2d(F.conv2d(single, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return blurred.unflatten(0, images.shape[:2])[:, :, 0]
