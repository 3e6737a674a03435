"""The film of a run: its frames, their order, its size."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ganfast.engine import film
from ganfast.errors import Damaged, InvalidValue

INK = (0x1F, 0x29, 0x33)
VERMILION = (0xD5, 0x5E, 0x00)
Array = np.ndarray[Any, np.dtype[Any]]


def pictures(folder: Path, count: int, size: tuple[int, int] = (90, 60)) -> list[Path]:
    places = []
    for index in range(count):
        places.append(folder / f"step-{index:08d}.png")
        Image.new("L", size, 255 * index // max(1, count - 1)).save(places[-1])
    return places


def shown(place: Path) -> list[tuple[Image.Image, int]]:
    with Image.open(place) as opened:
        assert opened.format == "WEBP"
        return [(frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(opened)]


def test_a_film_shows_its_frames_in_order_and_holds_the_last(tmp_path: Path) -> None:
    out = film.animation(pictures(tmp_path, 9), tmp_path / "a.webp", seconds=6)
    frames = shown(out)
    levels = [np.asarray(frame)[30, 45].mean() for frame, _ in frames]
    np.testing.assert_allclose(levels, [255 * index // 8 for index in range(9)], atol=4)  # lossy WebP
    durations = [duration for _, duration in frames]
    assert sum(durations) == pytest.approx(6000, abs=20)
    assert durations[-1] == 2000 > 3 * durations[0]
    with Image.open(out) as opened:
        assert opened.info["loop"] == 0


def test_the_bar_along_the_bottom_grows_to_the_full_width(tmp_path: Path) -> None:
    frames = [frame for frame, _ in shown(film.animation(pictures(tmp_path, 5), tmp_path / "a.webp"))]
    blue = np.array((0x00, 0x72, 0xB2))
    lengths = [(abs(np.asarray(frame)[-2].astype(int) - blue).max(axis=-1) <= 80).sum() for frame in frames]
    assert lengths == sorted(lengths)
    assert lengths[0] == pytest.approx(18, abs=4)  # lossy WebP blurs the bar's end over half of its 8-pixel blocks
    assert lengths[-1] == pytest.approx(90, abs=2)  # and the picture's edge by less


def test_a_long_film_is_thinned_to_sixty_frames_with_both_ends(tmp_path: Path) -> None:
    places = pictures(tmp_path, 150, (320, 16))
    for index, place in enumerate(places):
        pixels = np.zeros((16, 320), np.uint8)
        pixels[:, 2 * index : 2 * index + 16] = 255
        Image.fromarray(pixels).save(place)
    frames = shown(film.animation(places, tmp_path / "a.webp"))
    moved = [np.flatnonzero(np.asarray(frame)[8, :, 0] > 128).mean() - 7.5 for frame, _ in frames]
    np.testing.assert_allclose(moved, [2 * round(index * 149 / 59) for index in range(60)], atol=1)  # lossy WebP blurs an edge


def test_frames_of_other_sizes_take_the_last_ones(tmp_path: Path) -> None:
    places = pictures(tmp_path, 3)
    Image.new("RGB", (33, 50), "red").save(places[0])
    assert {frame.size for frame, _ in shown(film.animation(places, tmp_path / "a.webp"))} == {(90, 65)}


def test_large_frames_are_made_smaller(tmp_path: Path) -> None:
    frames = shown(film.animation(pictures(tmp_path, 2, (2000, 1000)), tmp_path / "a.webp"))
    assert {frame.size for frame, _ in frames} == {(640, 325)}


def test_one_frame_is_a_film_too(tmp_path: Path) -> None:
    assert len(shown(film.animation(pictures(tmp_path, 1), tmp_path / "a.webp"))) == 1


def test_bad_frames_leave_no_pictures(tmp_path: Path) -> None:
    places = pictures(tmp_path, 3)
    places[1].write_bytes(places[1].read_bytes()[:40])
    out = tmp_path / "a.webp"
    with pytest.raises(Damaged, match=r"step-00000001\.png: expected a picture"):
        film.animation(places, out)
    with pytest.raises(InvalidValue, match="at least one frame"):
        film.animation([], out)
    with pytest.raises(InvalidValue, match=r"named \*\.webp, got a\.mp4"):
        film.animation(places, tmp_path / "a.mp4")
    assert not out.exists()


def test_pictures_are_kept_within_their_budget() -> None:
    noise = [Image.fromarray(pixels) for pixels in np.random.default_rng(0).integers(0, 256, (3, 200, 200, 3), dtype=np.uint8)]
    full = len(film.webp(noise, 10**9, [100] * 3))
    for budget in (full // 2, full // 20):
        data = film.webp(noise, budget, [100] * 3)
        assert len(data) <= budget
        with Image.open(io.BytesIO(data)) as opened:
            assert len(list(ImageSequence.Iterator(opened))) == 3
    with pytest.raises(InvalidValue, match="cannot fit 3 pictures"):
        film.webp(noise, 50, [100] * 3)


def test_spreading_keeps_both_ends() -> None:
    assert film.spread(range(5), 9) == [0, 1, 2, 3, 4]
    chosen = film.spread(range(1000), 24)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 999, 24)
    assert set(np.diff(chosen)) <= {43, 44}
