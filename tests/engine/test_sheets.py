from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ganfast.engine import sheets
from ganfast.engine.draw import VERMILION, WIDTH
from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.nearest import Neighbours

Pixels = NDArray[np.uint8]


def flat(*levels: int, side: int = 4, channels: int = 1) -> Pixels:
    """One image of each grey level."""
    return np.stack([np.full((side, side, channels), level, np.uint8) for level in levels])


def where(picture: Image.Image, level: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels of one grey level; it must be a full rectangle."""
    match = (np.asarray(picture) == level).all(axis=2)
    rows, columns = match.any(axis=1).nonzero()[0], match.any(axis=0).nonzero()[0]
    assert match[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> bool:
    return bool((np.asarray(picture.crop(box)) != 255).any())


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_in_rows_with_their_captions_below(channels: int) -> None:
    images = flat(10, 20, 30, 40, 50, 60, channels=channels).reshape(2, 3, 4, 4, channels)
    captions = [["a", "", "c"], ["d", "e", "f"]]
    picture = sheets.captioned(images, captions, scale=20)
    boxes = {level: where(picture, level) for level in (10, 20, 30, 40, 50, 60)}
    assert all((right - left, bottom - top) == (80, 80) for left, top, right, bottom in boxes.values())
    assert len({boxes[level][1] for level in (10, 20, 30)}) == 1
    assert [boxes[level][0] for level in (10, 20, 30)] == [boxes[level][0] for level in (40, 50, 60)]
    for (row, column), level in zip(np.ndindex(2, 3), boxes, strict=True):
        left, _, right, bottom = boxes[level]
        assert ink(picture, (left, bottom, right, bottom + 20)) == bool(captions[row][column])


def test_what_is_set_apart_has_room_and_what_is_marked_a_frame() -> None:
    images = flat(10, 20, 30).reshape(1, 3, 4, 4, 1)
    picture = sheets.captioned(
        images, [["a", "b", "c"]], apart=1, marked=[(0, 2)], headings=[(1, "others")], note="why", scale=16
    )
    first, second, third = (where(picture, level) for level in (10, 20, 30))
    assert second[0] - first[2] == third[0] - second[2] + 28
    red = np.array([int(VERMILION[i : i + 2], 16) for i in (1, 3, 5)])
    columns = (np.asarray(picture) == red).all(axis=2).any(axis=0).nonzero()[0]
    assert (columns[0], columns[-1] + 1) == (third[0] - 3, third[2] + 3)
    assert ink(picture, (second[0], 0, second[2], second[1]))
    assert not ink(picture, (0, 0, first[2], first[1]))
    assert ink(picture, (0, picture.height - 40, picture.width, picture.height))


def test_small_images_are_enlarged_and_large_ones_left() -> None:
    small = sheets.captioned(np.zeros((8, 7, 28, 28, 1), np.uint8), [["1"] * 7] * 8)
    assert 600 < small.width <= WIDTH + 2 * 12
    large = sheets.captioned(np.zeros((1, 1, 300, 300, 3), np.uint8), [[""]])
    assert where(large, 0) == (12, 12, 312, 312)


def test_a_long_note_widens_the_sheet() -> None:
    images = flat(10).reshape(1, 1, 4, 4, 1)
    note = "what the distances are and how large they are usually " * 3
    assert sheets.captioned(images, [["a"]], note=note).width > sheets.captioned(images, [["a"]]).width + 500


def test_numbers_go_row_by_row() -> None:
    picture = sheets.numbered(flat(10, 20, 30, 40, 50))
    boxes = [where(picture, level) for level in (10, 20, 30, 40, 50)]
    assert [box[1] == boxes[0][1] for box in boxes] == [True, True, True, False, False]
    assert boxes[3][0] == boxes[0][0] and boxes[4][0] == boxes[1][0]
    assert all(ink(picture, (left, bottom, right, bottom + 16)) for left, _, right, bottom in boxes)
    left, _, right, _ = boxes[2]
    assert not ink(picture, (left, boxes[3][1], right, picture.height))


def test_ways_have_numbers_at_their_ends() -> None:
    picture = sheets.ways(flat(10, 20, 30).reshape(1, 3, 4, 4, 1))
    boxes = [where(picture, level) for level in (10, 20, 30)]
    assert [ink(picture, (left, bottom, right, bottom + 20)) for left, _, right, bottom in boxes] == [True, False, True]


def test_neighbours_are_the_chosen_samples_and_theirs() -> None:
    samples, training = flat(1, 2, 3), flat(*range(10, 20))
    found = Neighbours(torch.tensor([[0.5, 1.0], [0.7, 0.8], [0.0, 2.0]]), torch.tensor([[4, 5], [6, 7], [8, 9]]))
    picture = sheets.neighbours(samples, training, found, [2, 0], note="pixels")
    tops = {level: where(picture, level)[1] for level in (3, 18, 19, 1, 14, 15)}
    assert tops[3] == tops[18] == tops[19] < tops[1] == tops[14] == tops[15]
    assert where(picture, 3)[0] < where(picture, 18)[0] < where(picture, 19)[0]
    shown = set(np.unique(np.asarray(picture)[..., 0]))
    assert not shown & {2, 16, 17}
    red = np.array([int(VERMILION[i : i + 2], 16) for i in (1, 3, 5)])
    columns = (np.asarray(picture) == red).all(axis=2).any(axis=0).nonzero()[0]
    assert columns[0] == where(picture, 18)[0] - 3  # the copy


def test_an_equation_has_examples_means_and_a_block_of_results() -> None:
    terms = [
        (sign, name, flat(*range(first, first + 3)), flat(first + 3)[0])
        for sign, name, first in (("", "a", 10), ("-", "b", 20), ("+", "c", 30))
    ]
    picture = sheets.equation(terms, flat(*range(100, 109)).reshape(3, 3, 4, 4, 1), scale=8)
    boxes = {level: where(picture, level) for level in [*range(10, 14), *range(20, 24), *range(30, 34), *range(100, 109)]}
    assert all((right - left, bottom - top) == (32, 32) for left, top, right, bottom in boxes.values())
    for first in (10, 20, 30):
        assert len({boxes[level][0] for level in range(first, first + 4)}) == 1
        assert boxes[first][1] < boxes[first + 1][1] < boxes[first + 2][1] < boxes[first + 3][1]
    assert boxes[13][0] < boxes[23][0] < boxes[33][0] < boxes[100][0]
    assert boxes[104][1] - boxes[13][1] <= 0  # the middle result is not below the means
    assert [boxes[level][:2] for level in (100, 101, 103)] == [
        boxes[100][:2],
        (boxes[100][0] + 36, boxes[100][1]),
        (boxes[100][0], boxes[100][1] + 36),
    ]


@pytest.mark.parametrize(
    ("images", "captions", "error", "message"),
    [
        (np.zeros((1, 1, 4, 4, 1)), [["a"]], InvalidType, "expected a uint8 array .* got float64"),
        ([1], [["a"]], InvalidType, "got list"),
        (np.zeros((1, 4, 4, 1), np.uint8), [["a"]], InvalidValue, r"with C 1 or 3, none of them 0, got \(1, 4, 4, 1\)"),
        (np.zeros((1, 1, 4, 4, 2), np.uint8), [["a"]], InvalidValue, "with C 1 or 3"),
        (np.zeros((1, 2, 4, 4, 1), np.uint8), [["a"]], InvalidValue, r"1 rows of 2 captions, got \[1\]"),
    ],
)
def test_refusals(images: Any, captions: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sheets.captioned(images, captions)
