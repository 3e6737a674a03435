"""From odd pictures to 8-bit squares: palettes, alpha, 16 bits, orientation, crops, filters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganfast.data import Dataset, open_dataset

Write = Callable[..., Path]


@pytest.fixture
def opened(tmp_path: Path, write_png: Write) -> Callable[..., np.ndarray]:
    """Saves one picture as PNG and opens the folder: its pixels (H, W, C)."""

    def run(picture: Any, **look: Any) -> np.ndarray:
        write_png(tmp_path / "one" / "picture.png", picture)
        data: Dataset = open_dataset(tmp_path / "one", **look)
        return data.groups["real"]["real"][0]

    return run


def test_palette_with_transparency_lands_on_white(opened: Callable[..., np.ndarray]) -> None:
    """As emoji come: a palette image whose entries have alphas of their own."""
    picture = Image.new("P", (2, 2))
    picture.putpalette([255, 0, 0, 0, 0, 255, 9, 9, 9])
    picture.putdata([0, 1, 2, 1])
    picture.info["transparency"] = bytes([255, 128, 0])
    pixels = opened(picture)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[1, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[0, 1].astype(int) - [127, 127, 255]).max() <= 1


def test_a_grey_palette_stays_grey(opened: Callable[..., np.ndarray]) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 10, 10, 200, 200, 200])
    picture.putdata([1, 0])
    assert opened(picture, image_size=1).shape == (1, 1, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(opened: Callable[..., np.ndarray], mode: str) -> None:
    colour = (40, 80, 120) if mode == "RGBA" else (40,)
    picture = Image.new(mode, (3, 3), (*colour, 51))  # a fifth opaque
    pixels = opened(picture)
    truth = np.round(0.2 * np.array(colour) + 0.8 * 255)
    assert pixels.shape[2] == len(colour)
    assert np.abs(pixels.astype(float) - truth).max() <= 1


def test_sixteen_bits_keep_their_range(opened: Callable[..., np.ndarray]) -> None:
    values = np.array([[0, 257, 32896, 65535]] * 4, np.uint16)
    assert opened(values)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_bilevel_is_black_and_white(opened: Callable[..., np.ndarray]) -> None:
    picture = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert opened(picture)[..., 0].tolist() == [[0, 255], [255, 0]]


def test_exif_orientation_is_honoured(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels).save(tmp_path / "set" / "photo.jpg", exif=exif, quality=95, subsampling=0)
    turned = open_dataset(tmp_path / "set").groups["real"]["real"][0]
    assert turned[2, 12, 0] > 200
    assert turned[2, 2, 0] < 50


def test_the_central_square_is_kept(opened: Callable[..., np.ndarray]) -> None:
    wide = np.repeat(np.arange(10, dtype=np.uint8)[None, :] * 10, 4, axis=0)
    assert opened(wide, image_size=4)[0, :, 0].tolist() == [30, 40, 50, 60]
    assert opened(wide.T.copy(), image_size=4)[:, 0, 0].tolist() == [30, 40, 50, 60]


def test_the_filter_is_the_one_named(opened: Callable[..., np.ndarray]) -> None:
    checks = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    assert set(opened(checks, image_size=4, filter="box").flatten().tolist()) <= {127, 128}
    assert set(opened(checks, image_size=4, filter="nearest").flatten().tolist()) <= {0, 255}


def test_channels_convert_both_ways(opened: Callable[..., np.ndarray]) -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert opened(red, channels=1)[0, 0].tolist() == [76]  # ITU-R 601: 0.299 * 255
    assert opened(np.full((4, 4), 9, np.uint8), channels=3)[0, 0].tolist() == [9, 9, 9]


def test_one_colour_picture_makes_the_set_colour(tmp_path: Path, write_png: Write) -> None:
    write_png(tmp_path / "set" / "a.png", np.full((4, 4), 9, np.uint8))
    write_png(tmp_path / "set" / "b.png", np.full((4, 4, 3), 8, np.uint8))
    pixels = open_dataset(tmp_path / "set").groups["real"]["real"]
    assert pixels.shape == (2, 4, 4, 3)
    assert pixels[0, 0, 0].tolist() == [9, 9, 9]
