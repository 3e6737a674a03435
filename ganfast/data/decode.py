"""Decoding a collection: one look at every header to settle size and channels, then every picture once, in order, in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ganfast.data.digest import WORKERS
from ganfast.data.pictures import Pictures, Rows, Stack
from ganfast.data.pixels import Look, fitted, is_grey
from ganfast.data.progress import tracked
from ganfast.errors import InvalidData

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

BLOCK = 256  # pictures decoded before any is stored: bounds the memory
NAMED = 5  # unreadable pictures that a warning names


class Unreadable:
    """Counts pictures that do not decode: up to one in a hundred is left out, more is an error."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self.allowed = len(pictures) // 100
        self.reasons: dict[int, str] = {}

    def add(self, i: int, error: Exception) -> None:
        self.reasons[i] = str(error).partition("\n")[0] or type(error).__name__
        if len(self.reasons) > self.allowed:
            first = min(self.reasons)
            more = f" and {len(self.reasons) - 1} more" if len(self.reasons) > 1 else ""
            raise InvalidData(
                f"{self.pictures.where(first)}{more} cannot be read ({self.reasons[first]}); "
                f"remove or repair it: of {len(self.pictures)} images at most {self.allowed} may be unreadable"
            )


def left_out(dataset: str, unreadable: Sequence[str], total: int) -> str:
    """What to say of the ``unreadable`` among ``total`` pictures; nothing where there are none."""
    if not unreadable:
        return ""
    more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    named = ", ".join(unreadable[:NAMED])
    return f"{dataset}: {len(unreadable)} of {total} images cannot be read and are left out: {named}{more}"


def settled(groups: Mapping[str, Rows], look: Look) -> Look:
    """``look`` with size and channels filled in from the headers of all groups, so that every picture will agree.

    Raises :class:`~ganfast.errors.InvalidData` if no size is asked for and the pictures are not square or differ in size.
    """
    sizes: dict[tuple[int, int], str] = {}
    grey = True
    for rows in groups.values():
        for where, size, is_this_grey in _headers(rows.pictures, look):
            sizes.setdefault(size, where)
            grey = grey and is_this_grey
            _one_square(sizes, look)
    side = look.image_size or next(iter(sizes))[0]
    return replace(look, image_size=side, channels=look.channels or (1 if grey else 3))


def _one_square(sizes: Mapping[tuple[int, int], str], look: Look) -> None:
    if look.image_size is not None:
        return
    for (width, height), where in sizes.items():
        if width != height:
            raise InvalidData(f"{where} is {width} x {height}, not square; pass image_size (--image-size) to crop and resize")
    if len(sizes) > 1:
        (first, where), (other, elsewhere) = list(sizes.items())[:2]
        raise InvalidData(
            f"images differ in size: {where} is {first[0]} x {first[1]}, {elsewhere} is {other[0]} x {other[1]}; "
            "pass image_size (--image-size) to crop and resize"
        )


def _headers(pictures: Pictures, look: Look) -> Iterator[tuple[str, tuple[int, int], bool]]:
    if look.image_size is not None and look.channels is not None:
        return
    if isinstance(pictures, Stack):
        _, height, width, channels = pictures.array.shape
        yield pictures.where(0), (width, height), channels < 3
        return

    def header(image: Image) -> tuple[tuple[int, int], bool]:
        return image.size, look.channels is None and is_grey(image)

    unreadable = Unreadable(pictures)
    for i, (size, grey) in _each(pictures, header, unreadable, "reading headers"):
        yield pictures.where(i), size, grey


class Decoding:
    """The pictures as uint8 blocks (up to 256, S, S, C).

    Once exhausted, ``kept`` holds the row numbers that decoded, and ``unreadable`` the names of the others.
    """

    def __init__(self, pictures: Pictures, look: Look) -> None:
        self.pictures = pictures
        self.look = look
        self.kept: NDArray[np.int64] = np.arange(0)
        self.unreadable: list[str] = []

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        if isinstance(self.pictures, Stack) and self.pictures.array.shape[1:] == (
            *[self.look.image_size] * 2,
            self.look.channels,
        ):
            self.kept = np.arange(len(self.pictures))
            for first in range(0, len(self.pictures), BLOCK):
                yield self.pictures.array[first : first + BLOCK]
            return
        unreadable = Unreadable(self.pictures)
        kept: list[int] = []
        block: list[NDArray[np.uint8]] = []
        for i, pixels in _each(self.pictures, lambda image: fitted(image, self.look), unreadable, "decoding images"):
            kept.append(i)
            block.append(pixels)
            if len(block) == BLOCK:
                yield np.stack(block)
                block = []
        if block:
            yield np.stack(block)
        self.kept = np.array(kept, np.int64)
        self.unreadable = [self.pictures.called(i) for i in sorted(unreadable.reasons)]


def _each(pictures: Pictures, work: Callable[[Image], T], unreadable: Unreadable, what: str) -> Iterator[tuple[int, T]]:
    """(i, work(picture i)) in order for the pictures that can be read, computed in threads."""
    from PIL import Image

    def one(i: int) -> T | Exception:
        try:
            with pictures.open(i) as image:
                return work(image)
        except Image.DecompressionBombError as error:
            raise InvalidData(f"{pictures.where(i)} is too large: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # a damaged file makes decoders raise anything
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        blocks = (range(first, min(first + BLOCK, len(pictures))) for first in range(0, len(pictures), BLOCK))
        results = ((i, result) for block in blocks for i, result in zip(block, pool.map(one, block), strict=True))
        for i, result in tracked(results, len(pictures), what):
            if isinstance(result, Exception):
                unreadable.add(i, result)
            else:
                yield i, result
