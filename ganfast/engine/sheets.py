"""Pictures with words in them: images in rows with captions, and sums of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ganfast.engine.draw import FAINT, HEIGHT, INK, VERMILION, WIDTH, Array
from ganfast.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from PIL.Image import Image

    from ganfast.metrics.nearest import Neighbours

_GAP, _APART = 8, 28  # pixels between images, and behind what is set apart
_CAPTION, _HEADING, _MARGIN = 20, 30, 12
_CELL = 112  # pixels that a small image is enlarged to at most, so that its words fit under it


def captioned(
    images: Array,
    captions: Sequence[Sequence[str]],
    *,
    headings: Sequence[tuple[int, str]] = (),
    apart: int = 0,
    marked: Sequence[tuple[int, int]] = (),
    note: str = "",
    scale: int | None = None,
) -> Image:
    """uint8 images (rows, columns, H, W, C), C 1 or 3, each with its caption below.

    ``headings`` are (column from which it runs, text). The first ``apart`` columns are set off from the rest, images ``marked``
    by (row, column) have a frame, and the ``note`` stands under everything. Small images are enlarged by a whole number. Raises
    InvalidType or InvalidValue for anything but such arrays, or captions that are not one an image.
    """
    images = _checked(images)
    rows, columns, height, width = images.shape[:4]
    if [len(row) for row in captions] != [columns] * rows:
        raise InvalidValue(f"expected {rows} rows of {columns} captions, got {[len(row) for row in captions]}")
    scale = _scale(images, rows, columns) if scale is None else scale
    wide, high = max(width * scale, _CELL // 2) + _GAP, height * scale + _GAP + _CAPTION * any(map(any, captions))
    left, top = _MARGIN, _MARGIN + _HEADING * bool(headings)

    def place(row: int, column: int) -> tuple[int, int]:
        return left + column * wide + (_APART if apart and column >= apart else 0), top + row * high

    words = _Canvas.words(note, 13)
    right, bottom = place(rows, columns)
    sheet = _Canvas(max(right, left + words + _MARGIN) - _GAP + _MARGIN, bottom + (30 if note else 0))
    for column, text in headings:
        sheet.text((place(0, column)[0], top - 10), text, size=14, anchor="ls")
    for row in range(rows):
        for column in range(columns):
            x, y = place(row, column)
            sheet.image((x, y), images[row, column], scale, frame=(row, column) in marked)
            colour = VERMILION if (row, column) in marked else FAINT
            sheet.text(
                (x + width * scale / 2, y + height * scale + 5), captions[row][column], size=12, anchor="mt", colour=colour
            )
    sheet.text((left, bottom + 6), note, size=13, anchor="lt", colour=FAINT)
    return sheet.picture


def numbered(images: Array) -> Image:
    """uint8 images (n, H, W, C) with their numbers, from 0 on, in about a square."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    filled = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    filled[: len(images)] = images
    numbers = [[str(i) if i < len(images) else "" for i in range(row * columns, (row + 1) * columns)] for row in range(rows)]
    return captioned(filled.reshape(rows, columns, *images.shape[1:]), numbers)


def ways(images: Array) -> Image:
    """uint8 images (pairs, steps, H, W, C) on the way from one sample to the next, with the samples' numbers at both ends."""
    pairs, steps = images.shape[:2]
    captions = [[f"no. {2 * pair}", *[""] * (steps - 2), f"no. {2 * pair + 1}"] for pair in range(pairs)]
    return captioned(images, captions)


def neighbours(samples: Array, training: Array, found: Neighbours, chosen: Sequence[int], *, note: str = "") -> Image:
    """A row for each of the ``chosen`` samples: the sample, then its nearest training images with their distances.

    ``samples`` and ``training`` are uint8 images (n, H, W, C), ``found`` is what :mod:`ganfast.metrics.nearest` gives for them.
    A copy, at distance 0, has a frame.
    """
    distances, indices = (part[list(chosen)].cpu().numpy() for part in found)
    images = np.concatenate([samples[list(chosen)][:, None], training[indices]], axis=1)
    captions = [
        [f"no. {number}", *(f"{distance:#.3g}" for distance in row)] for number, row in zip(chosen, distances, strict=True)
    ]
    copies = [(row, column + 1) for row, column in np.argwhere(distances == 0).tolist()]
    headings = [(0, "sample"), (1, "training images, nearest first")]
    return captioned(images, captions, headings=headings, apart=1, marked=copies, note=note)


def equation(terms: Sequence[tuple[str, str, Array, Array]], result: Array, *, scale: int | None = None) -> Image:
    """A sum of images: terms side by side, then an equals sign and the grid of results.

    A term is (sign, name, examples (k, H, W, C), their mean's image (H, W, C)); the examples stand above the image, and the sign
    in front of it. ``result`` (r, c, H, W, C) is drawn as one block, its middle being what the sum gives. uint8 throughout.
    """
    result = _checked(result)
    rows, columns, height, width = result.shape[:4]
    examples = max(len(term[2]) for term in terms)
    scale = _scale(result, max(rows, examples + 1), len(terms) + columns + 1) if scale is None else scale
    wide, high, sign = width * scale, height * scale, 40
    column = max(wide, 96)
    bottom = _MARGIN + _HEADING + examples * (high + 4) + 20
    tall = max(bottom + high, _MARGIN + _HEADING + rows * (high + 4)) + _MARGIN
    right = _MARGIN + len(terms) * (column + sign)
    sheet = _Canvas(right + columns * (wide + 4) + _MARGIN, tall + 20)
    for index, (operator, name, some, mean) in enumerate(terms):
        left = _MARGIN + index * (column + sign) + (column - wide) // 2
        sheet.text((left + wide / 2, _MARGIN + 14), name, size=14, anchor="mm")
        for number, example in enumerate(some):
            sheet.image((left, _MARGIN + _HEADING + number * (high + 4)), example, scale)
        sheet.rule((left, bottom - 12), wide)
        sheet.image((left, bottom), mean, scale, frame=True, colour=INK)
        sheet.text((left + wide / 2, bottom + high + 6), "their mean", size=12, anchor="mt", colour=FAINT)
        if operator:
            sheet.text((left - (column - wide) / 2 - sign / 2, bottom + high / 2), operator, size=28, anchor="mm")
    middle = bottom + high / 2
    sheet.text((right - sign / 2, middle), "=", size=28, anchor="mm")
    top = int(max(_MARGIN + _HEADING, min(middle - rows * (high + 4) / 2, tall - _MARGIN - rows * (high + 4))))
    for row in range(rows):
        for number in range(columns):
            at = right + number * (wide + 4), top + row * (high + 4)
            centre = (row, number) == (rows // 2, columns // 2)
            sheet.image(at, result[row, number], scale, frame=centre, colour=INK)
    return sheet.picture


class _Canvas:
    """White paper to put images and words on."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.picture = Image.new("RGB", (width, height), "white")
        self._pen = ImageDraw.Draw(self.picture)

    @staticmethod
    def words(text: str, size: int) -> int:
        """The width of a text in pixels."""
        from PIL import ImageFont

        return math.ceil(ImageFont.load_default(size).getlength(text))

    def text(self, at: tuple[float, float], text: str, *, size: int, anchor: str, colour: str = INK) -> None:
        from PIL import ImageFont

        self._pen.text(at, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def rule(self, at: tuple[int, int], width: int) -> None:
        self._pen.line((*at, at[0] + width - 1, at[1]), fill=FAINT)

    def image(self, at: tuple[int, int], image: Array, scale: int, *, frame: bool = False, colour: str = VERMILION) -> None:
        from PIL import Image

        large = image.repeat(scale, axis=0).repeat(scale, axis=1)
        self.picture.paste(Image.fromarray(large[..., 0] if large.shape[2] == 1 else large), at)
        if frame:
            x, y = at
            self._pen.rectangle((x - 3, y - 3, x + large.shape[1] + 2, y + large.shape[0] + 2), outline=colour, width=2)


def _scale(images: Array, rows: int, columns: int) -> int:
    height, width = images.shape[2:4]
    room = min(_CELL, WIDTH // columns - _GAP) / width, min(_CELL, HEIGHT // rows - _GAP) / height
    return max(1, math.floor(min(room)))


def _checked(images: Array) -> Array:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise InvalidType(
            f"expected a uint8 array (rows, columns, H, W, C), got {getattr(images, 'dtype', type(images).__name__)}"
        )
    if images.ndim != 5 or images.shape[4] not in (1, 3) or 0 in images.shape:
        raise InvalidValue(f"expected images (rows, columns, H, W, C) with C 1 or 3, none of them 0, got {images.shape}")
    return images
