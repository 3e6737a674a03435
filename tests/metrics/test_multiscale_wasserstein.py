from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter

from ganfast.data import open_dataset
from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics import multiscale_wasserstein as module
from ganfast.metrics.multiscale_wasserstein import multiscale_sliced_wasserstein, pyramid_level

Floats = NDArray[np.float64]
WINDOW = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])[None, None] / 256


def pyramid(images: Floats, levels: int) -> list[Floats]:
    """The authors' steps: halve, double, subtract."""
    found = [images]
    for _ in range(levels - 1):
        found.append(convolve(found[-1], WINDOW, mode="mirror")[:, :, ::2, ::2])
        spread = np.zeros_like(found[-2])
        spread[:, :, ::2, ::2] = found[-1]
        found[-2] = found[-2] - convolve(spread, 4 * WINDOW, mode="mirror")
    return found


def pictures(n: int, size: int, channels: int = 3, seed: int = 0, roughness: float = 2.0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).standard_normal((n, size, size, channels))
    return (128 + 200 * gaussian_filter(noise, (0, roughness, roughness, 0))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 31])
def test_levels_are_what_halving_takes_away(size: int) -> None:
    images = pictures(2, size).transpose(0, 3, 1, 2).astype(np.float64)
    for level, truth in enumerate(pyramid(images, 3)):
        found = pyramid_level(torch.from_numpy(images), level, last=level == 2)
        np.testing.assert_allclose(found.numpy(), truth, atol=1e-10)


def test_it_is_the_papers_distance_of_the_same_patches_and_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IMAGES", 1000)  # so that places are drawn for all images at once
    x, y = pictures(5, 32), pictures(4, 32, seed=1, roughness=1.5)
    found = multiscale_sliced_wasserstein(x, y, patches=6, directions=10, seed=3)
    generator = torch.Generator().manual_seed(3)
    levels = {}
    for level, size in enumerate((32, 16)):
        sets = []
        for images in (x, y):
            details = pyramid(images.transpose(0, 3, 1, 2).astype(np.float64), 2)[level]
            tops, lefts = (torch.randint(size - 6, (6 * len(images), 1), generator=generator)[:, 0].tolist() for _ in range(2))
            cut = np.stack([details[i // 6, :, t : t + 7, u : u + 7] for i, (t, u) in enumerate(zip(tops, lefts, strict=True))])
            cut = (cut - cut.mean((0, 2, 3), keepdims=True)) / cut.std((0, 2, 3), keepdims=True)
            sets.append(cut.reshape(len(cut), -1))
        directions = torch.randn(10, 147, generator=generator, dtype=torch.float64).numpy()
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        # every share of 1/120 is one of x's 30 and of y's 24 quantiles
        quantiles = [np.sort(side @ directions.T, axis=0).repeat(120 // len(side), axis=0) for side in sets]
        levels[size] = 1000 * np.abs(quantiles[0] - quantiles[1]).mean()
    assert found.levels == pytest.approx(levels, rel=1e-5)  # patches are in float32
    assert found.mean == pytest.approx(np.mean(list(levels.values())), rel=1e-5)


def test_each_scale_sees_its_own_defects() -> None:
    images = open_dataset("fashion-mnist-10k").groups["real"]["real"]
    one, other = images[:400], images[400:800]
    options = {"patches": 32, "directions": 64, "smallest": 7}
    same = multiscale_sliced_wasserstein(one, other, **options)
    assert list(same.levels) == [28, 14, 7]
    noisy = (other.astype(int) + 30 * np.random.default_rng(0).choice([-1, 1], other.shape)).clip(0, 255).astype(np.uint8)
    fine = multiscale_sliced_wasserstein(one, noisy, **options)
    assert fine.levels[28] > 3 * same.levels[28]
    assert fine.levels[7] < 1.5 * same.levels[7]
    turned = multiscale_sliced_wasserstein(one, np.rot90(other, axes=(1, 2)), **options)
    assert turned.levels[7] > 2 * same.levels[7]


def test_seeds_chunks_and_constant_images(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(6, 16, 1), pictures(6, 16, 1, seed=1)
    options = {"patches": 8, "directions": 16}
    found = multiscale_sliced_wasserstein(x, torch.from_numpy(y), **options)
    assert found == multiscale_sliced_wasserstein(x, y, **options) != multiscale_sliced_wasserstein(x, y, **options, seed=1)
    flat = np.full((6, 16, 16, 1), 9, np.uint8)
    assert multiscale_sliced_wasserstein(flat, flat, **options).mean == 0
    monkeypatch.setattr(module, "_PROJECTED", 100)
    assert multiscale_sliced_wasserstein(x, y, **options).mean == pytest.approx(found.mean, rel=1e-12)


def test_refusals() -> None:
    images = np.zeros((2, 12, 12, 1), np.uint8)
    for call, message in [
        (lambda: multiscale_sliced_wasserstein(images, images), "at least 16 pixels, got 12: give smallest=12, 7 or more"),
        (lambda: multiscale_sliced_wasserstein(images, images, smallest=6), "smallest: expected at least 7, got 6"),
        (
            lambda: multiscale_sliced_wasserstein(images, images[:, :8]),
            r"of one size, got \(12, 12, 1\) in x and \(8, 12, 1\) in y",
        ),
        (lambda: multiscale_sliced_wasserstein(images, images, patches=0), "patches: expected at least 1, got 0"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidType, match="y: expected uint8 images"):
        multiscale_sliced_wasserstein(images, images / 1.0)
