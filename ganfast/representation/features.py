"""Rows of images as rows of features, standardised so that one linear classifier serves every representation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganfast.errors import InvalidValue
from ganfast.metrics.arrays import check_numbers
from ganfast.representation import kmeans
from ganfast.representation.critic import layer_features

Images = NDArray[np.uint8]
Transform = Callable[[Tensor], Tensor]  # images uint8 (n, H, W, C) -> features (n, D)

_CHUNK = 128  # images at a time
_ROWS = 4096  # of features standardised at a time
_FLOOR = 0.01  # share of the mean variance that is added to each: a feature that hardly varies is no louder than the others
_SAME = 1e-10  # of the mean square: less variance than this is rounding


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1).float()


def by_kmeans(images: Images, rows: Tensor, centroids: int, generator: torch.Generator, device: torch.device) -> Transform:
    """Features of a dictionary that is learned from some rows of the images."""
    dictionary = kmeans.learn(images, rows, centroids, generator).to(device)
    return lambda chunk: dictionary.features(chunk.permute(0, 3, 1, 2).float())


def by_critic(critic: nn.Module) -> Transform:
    """The pooled maps of all its layers, side by side."""

    def transform(images: Tensor) -> Tensor:
        x = (images.float() / 127.5 - 1).permute(0, 3, 1, 2)  # as it saw them in training, channels last too
        return torch.cat([maps.flatten(1) for maps in layer_features(critic, x)], dim=1)

    return transform


def extract(
    transform: Transform,
    parts: Iterable[tuple[Images, Tensor]],
    device: torch.device,
    watch: Callable[[range, int], Iterable[int]] = lambda starts, total: starts,
) -> list[Tensor]:
    """Features float32 (N, D), on the device, of each of the parts: images and which of their rows."""
    found = []
    for images, rows in parts:
        features = torch.empty(0)
        starts = range(0, len(rows), _CHUNK)
        for start in watch(starts, len(starts)):
            chunk = torch.from_numpy(images[rows[start : start + _CHUNK].numpy()]).to(device)
            made = transform(chunk)
            if start == 0:
                features = torch.empty(len(rows), made.shape[1], device=device)
            features[start : start + len(made)] = made
        found.append(features)
    return found


def standardise(parts: list[Tensor], name: str) -> None:
    """Every feature, in place: minus its mean, over its deviation, both of the first part; then over sqrt(D).

    Rows have a length of about one then, and C means the same for every representation. Raises InvalidValue for NaN and Inf, and
    where no feature differs between the first part's images.
    """
    for part in parts:
        check_numbers(part, f"{name}: features")
    first = parts[0]
    chunks = first.split(_ROWS)
    mean = torch.stack([chunk.sum(dim=0, dtype=torch.float64) for chunk in chunks]).sum(dim=0) / len(first)
    variance = torch.stack([(chunk - mean).square().sum(dim=0) for chunk in chunks]).sum(dim=0) / len(first)
    if variance.mean() <= _SAME * (mean.square() + variance).mean():
        raise InvalidValue(f"{name}: all {len(first)} images have the same features, which tell no classes apart")
    scale = (variance + _FLOOR * variance.mean()).rsqrt() / len(mean) ** 0.5
    for part in parts:
        for chunk in part.split(_ROWS):
            chunk.copy_((chunk - mean) * scale)
