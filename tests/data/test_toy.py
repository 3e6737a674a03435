"""Toy distributions against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ganfast.data import modes, open_dataset, sigma, toy
from ganfast.errors import InvalidValue


@pytest.mark.parametrize(("name", "count"), [("ring8", 8), ("grid25", 25)])
def test_mixtures_are_balanced_gaussians_around_their_modes(name: str, count: int) -> None:
    points, centres = toy(name, 50_000, seed=1), modes(name)
    assert points.dtype == np.float32
    assert points.shape == (50_000, 2)
    assert centres.shape == (count, 2)
    distance = np.linalg.norm(points[:, None] - centres, axis=2)
    nearest = distance.argmin(1)
    share = np.bincount(nearest, minlength=count) / len(points)
    assert np.abs(share - 1 / count).max() < 5 * np.sqrt(1 / count / len(points))
    noise = points - centres[nearest]
    assert np.abs(noise.std(0) / sigma(name) - 1).max() < 0.02
    assert np.abs(noise.mean(0)).max() < 5 * sigma(name) / np.sqrt(len(points))


def test_the_published_sizes() -> None:
    assert np.allclose(np.linalg.norm(modes("ring8"), axis=1), 2, atol=1e-6)  # stored as float32
    assert np.allclose(modes("ring8")[1], [2**0.5, 2**0.5], atol=1e-6)  # stored as float32
    assert {tuple(mode) for mode in modes("grid25").tolist()} == {(x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)}
    assert (sigma("ring8"), sigma("grid25")) == (0.02, 0.05)


def test_swiss_roll_winds_outwards() -> None:
    points = toy("swissroll", 20_000).astype(np.float64) * 7.5
    radius, angle = np.linalg.norm(points, axis=1), np.arctan2(points[:, 1], points[:, 0])
    turns = np.round((radius - angle) / (2 * np.pi))
    off = radius - (angle + 2 * np.pi * turns)
    assert np.abs(off.std() / 0.25 - 1) < 0.05
    assert 1.5 * np.pi - 1 < radius.min() < 1.5 * np.pi + 0.2
    assert 4.5 * np.pi - 0.2 < radius.max() < 4.5 * np.pi + 1.2
    assert sigma("swissroll") == pytest.approx(0.25 / 7.5)


def test_points_are_a_function_of_the_arguments() -> None:
    assert np.array_equal(toy("ring8", 10, seed=3), toy("ring8", 10, seed=3))
    assert not np.array_equal(toy("ring8", 10, seed=3), toy("ring8", 10, seed=4))
    assert toy("ring8", 0).shape == (0, 2)


def test_refusals() -> None:
    with pytest.raises(InvalidValue, match="unknown toy distribution 'ring9'; did you mean 'ring8'"):
        toy("ring9", 5)
    with pytest.raises(InvalidValue, match="swissroll' has no modes"):
        modes("swissroll")
    with pytest.raises(InvalidValue, match="n and seed must be at least 0"):
        toy("ring8", -1)


def test_as_a_data_set() -> None:
    data = open_dataset("toy:swissroll")
    assert (len(data), data.points, data.image_size, data.channels, data.classes) == (100_000, 2, 0, 0, 0)
    assert data.fields == ("real",)
    with pytest.raises(InvalidValue, match="points, which have no image_size"):
        open_dataset("toy:swissroll", image_size=32)
