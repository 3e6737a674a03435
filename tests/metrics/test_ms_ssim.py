from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peers import torchmetrics  # type: ignore[attr-defined]
from scipy.ndimage import gaussian_filter

from ganfast.data import open_dataset
from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.ms_ssim import BETAS, most_scales, ms_ssim, ms_ssim_diversity

module = importlib.import_module("ganfast.metrics.ms_ssim")  # ganfast.metrics.ms_ssim is the function

Pixels = NDArray[np.uint8]


def pair(n: int, height: int, width: int, channels: int, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Smooth images with noise, the second ones like the first."""
    rng = np.random.default_rng(seed)
    x = gaussian_filter(rng.standard_normal((n, height, width, channels)), (0, 3, 3, 0)) * 600 + 128
    y = 0.7 * x + 30 + 20 * rng.standard_normal(x.shape)
    return tuple(side.clip(0, 255).astype(np.uint8) for side in (x, y))  # type: ignore[return-value]


def by_definition(x: Pixels, y: Pixels, betas: tuple[float, ...]) -> float:
    """Of one grey image each, in NumPy and with SciPy's window."""
    one, other = x[..., 0].astype(float), y[..., 0].astype(float)
    found = 1.0
    for scale, beta in enumerate(betas):

        def blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
            return gaussian_filter(image, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

        mx, my = blur(one), blur(other)
        sx, sy, sxy = blur(one**2) - mx**2, blur(other**2) - my**2, blur(one * other) - mx * my
        value = (2 * sxy + 7.65**2) / (sx + sy + 7.65**2)
        if scale == len(betas) - 1:
            value = value * (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
        found *= max(0.0, value.mean()) ** beta
        height, width = one.shape[0] // 2 * 2, one.shape[1] // 2 * 2
        one, other = (
            (i[:height:2, :width:2] + i[1:height:2, :width:2] + i[:height:2, 1:width:2] + i[1:height:2, 1:width:2]) / 4
            for i in (one, other)
        )
    return found


@pytest.mark.parametrize(("height", "width"), [(176, 180), (177, 201)])
def test_five_scales_are_the_papers_formula(height: int, width: int) -> None:
    x, y = pair(2, height, width, 1)
    found = ms_ssim(x, torch.from_numpy(y))
    assert found.shape == (2,)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([by_definition(a, b, BETAS) for a, b in zip(x, y, strict=True)], rel=1e-10)
    assert 0.1 < found.min() < found.max() < 0.95


def test_fewer_scales_share_the_first_exponents() -> None:
    x, y = pair(3, 28, 28, 1)
    betas = (1.0001 * 0.0448 / 0.3304, 1.0001 * 0.2856 / 0.3304)
    truth = [by_definition(a, b, betas) for a, b in zip(x, y, strict=True)]
    assert ms_ssim(x, y, scales=2).tolist() == pytest.approx(truth, rel=1e-10)
    assert ms_ssim(x, y, betas=betas).tolist() == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize(
    ("size", "channels", "betas"), [(181, 1, BETAS), (64, 3, (0.2, 0.3, 0.5)), (32, 3, (0.4, 0.6)), (28, 1, (1.0,))]
)
def test_with_reflected_borders_it_is_torchmetrics(size: int, channels: int, betas: tuple[float, ...]) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs

    assert torchmetrics.__version__
    x, y = pair(3, size, size, channels, seed=size)
    floats = [torch.from_numpy(side).permute(0, 3, 1, 2).double() for side in (x, y)]
    truth = theirs(*floats, data_range=255.0, betas=betas, reduction="none")
    # theirs keeps the exponents in float32
    torch.testing.assert_close(ms_ssim(x, y, betas=betas, borders="reflect"), truth.double(), rtol=1e-6, atol=0)


def test_constant_images_differ_in_luminance_alone() -> None:
    x, y = np.full((1, 22, 30, 3), 200, np.uint8), np.full((1, 22, 30, 3), 50, np.uint8)
    luminance = (2 * 200 * 50 + 2.55**2) / (200**2 + 50**2 + 2.55**2)
    assert ms_ssim(x, y, scales=2).item() == pytest.approx(luminance ** (1.0001 * 0.2856 / 0.3304), rel=1e-10)
    assert ms_ssim(x, y, scales=1).item() == pytest.approx(luminance**1.0001, rel=1e-10)


def test_equal_ones_are_one_negatives_zero_and_order_is_nothing() -> None:
    x, y = pair(4, 44, 44, 3)
    assert ms_ssim(x, x, scales=3).tolist() == pytest.approx([1] * 4, abs=1e-12)
    assert ms_ssim(x, 255 - x, scales=2).tolist() == [0] * 4
    torch.testing.assert_close(ms_ssim(x, y, scales=3), ms_ssim(y, x, scales=3), rtol=1e-12, atol=0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(7, 28, 28, 1)
    together = ms_ssim(x, y, scales=2)
    monkeypatch.setattr(module, "_PIXELS", 2 * 28 * 28)
    torch.testing.assert_close(ms_ssim(x, y, scales=2), together, rtol=1e-12, atol=0)


def test_room_for_scales() -> None:
    assert [most_scales(side, 500) for side in (10, 11, 21, 22, 43, 44, 87, 88, 175, 176, 352)] == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        6,
    ]


# ---- diversity


def test_a_class_of_one_picture_is_as_alike_as_can_be_and_others_are_not() -> None:
    x, _ = pair(40, 28, 28, 1)
    images = np.concatenate([np.repeat(x[:1], 30, 0), x])
    labels = np.repeat([3, 7], [30, 40])
    found = ms_ssim_diversity(images, labels=labels, pairs=50, scales=2)
    assert list(found.classes) == [3, 7]
    assert found.classes[3] == pytest.approx(1, abs=1e-12)
    assert found.classes[7] < 0.3
    assert found.mean == pytest.approx((found.classes[3] + found.classes[7]) / 2)
    assert found == ms_ssim_diversity(torch.from_numpy(images), labels=torch.from_numpy(labels), pairs=50, scales=2)
    assert found.classes[7] != ms_ssim_diversity(images, labels=labels, pairs=50, scales=2, seed=1).classes[7]


def test_pairs_are_drawn_evenly_and_never_of_one_image_with_itself() -> None:
    x, _ = pair(3, 28, 28, 1)
    every = [ms_ssim(x[i : i + 1], x[j : j + 1], scales=2).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    found = ms_ssim_diversity(x, pairs=600, scales=2)
    assert list(found.classes) == [0]
    assert found.mean == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(600))
    assert ms_ssim_diversity(x[:2], pairs=20, scales=2).mean == pytest.approx(every[0], rel=1e-12)


def test_classes_of_fashion_are_more_alike_within_than_across() -> None:
    group = open_dataset("fashion-mnist-10k").groups["real"]
    images, labels = group["real"][:2000], group["labels"][:2000]
    within = ms_ssim_diversity(images, labels=labels, scales=2)
    across = ms_ssim_diversity(images, scales=2, pairs=1000)
    assert len(within.classes) == 10
    assert within.mean > 1.5 * across.mean


def test_refusals() -> None:
    small, two = np.zeros((3, 28, 28, 1), np.uint8), np.zeros((2, 176, 176, 1), np.uint8)
    for call, message in [
        (lambda: ms_ssim(small, small), r"images of 28 x 28 have room for 2 scales of a window of 11, not for 5: give scales=2"),
        (lambda: ms_ssim(small[:, :9], small[:, :9], scales=1), "room for 0 scales of a window of 11, not for 1: enlarge them"),
        (lambda: ms_ssim(small, two), r"x and y of one shape, got \(3, 28, 28, 1\) and \(2, 176, 176, 1\)"),
        (lambda: ms_ssim(two, two, scales=6), "scales: expected at most 5, got 6: for more, give betas"),
        (lambda: ms_ssim(two, two, scales=0), "scales: expected at least 1, got 0"),
        (lambda: ms_ssim(two, two, scales=2, betas=[1.0]), r"one for each scale, none below 0, got \[1.0\] for 2 scales"),
        (lambda: ms_ssim(two, two, betas=[]), "one for each scale"),
        (lambda: ms_ssim(two, two, borders="wrap"), "borders: expected one of none, reflect, got 'wrap'"),  # type: ignore[arg-type]
        (lambda: ms_ssim(small[..., 0], small[..., 0]), r"x: expected images \(N, H, W, C\)"),
        (lambda: ms_ssim_diversity(small[:1], scales=2), "at least two of class 0 to make pairs of, got 1"),
        (lambda: ms_ssim_diversity(small, labels=np.array([0, 0, 4]), scales=2), "at least two of class 4 .* got 1"),
        (lambda: ms_ssim_diversity(small, labels=np.zeros(2, int), scales=2), r"labels: expected 3 integers, got .* \(2,\)"),
        (lambda: ms_ssim_diversity(small, labels=np.zeros(3), scales=2), r"labels: expected 3 integers, got torch.float64"),
        (lambda: ms_ssim_diversity(small, pairs=0, scales=2), "pairs: expected at least 1, got 0"),
        (lambda: ms_ssim_diversity(small), "give scales=2"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidType, match=r"x: expected uint8 images \(N, H, W, C\), got torch.float64"):
        ms_ssim(small / 1.0, small)
