"""Pictures before they are a data set: numbered, named for errors, opened one at a time and possibly from several threads."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from ganfast.data.dataset import Dataset


class Pictures(Protocol):
    """A numbered collection of pictures."""

    def __len__(self) -> int: ...

    def called(self, i: int) -> str:
        """The name of picture ``i`` within the collection, wherever that lies."""

    def where(self, i: int) -> str:
        """What to call picture ``i`` in an error."""

    def open(self, i: int) -> Image:
        """Picture ``i``, its header read and its pixels perhaps not yet."""


def as_image(pixels: NDArray[np.uint8]) -> Image:
    """A Pillow image of pixels uint8 (H, W, C), C from 1 to 4: grey, grey + alpha, colour, colour + alpha."""
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


@dataclass(frozen=True)
class Stack:
    """Pictures that are rows of one array uint8 (N, H, W, C), C as in :func:`as_image`."""

    array: NDArray[np.uint8]
    origin: str

    def __len__(self) -> int:
        return len(self.array)

    def called(self, i: int) -> str:
        return f"image {i}"

    def where(self, i: int) -> str:
        return f"{self.origin}, {self.called(i)}"

    def open(self, i: int) -> Image:
        return as_image(self.array[i])


@dataclass(frozen=True)
class Files:
    """Image files below a folder."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def called(self, i: int) -> str:
        return self.names[i]

    def where(self, i: int) -> str:
        return str(self.root / self.names[i])

    def open(self, i: int) -> Image:
        from PIL import Image

        return Image.open(self.root / self.names[i])


@dataclass(frozen=True)
class Zipped:
    """Image files inside a zip archive, which is read in place."""

    path: Path
    archive: zipfile.ZipFile
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def called(self, i: int) -> str:
        return self.names[i]

    def where(self, i: int) -> str:
        return f"{self.path}: {self.names[i]}"

    def open(self, i: int) -> Image:
        from PIL import Image

        return Image.open(io.BytesIO(self.archive.read(self.names[i])))


@dataclass(frozen=True)
class Decoded:
    """Pictures that are in memory already."""

    images: Sequence[Image]
    origin: str

    def __len__(self) -> int:
        return len(self.images)

    def called(self, i: int) -> str:
        return f"item {i}"

    def where(self, i: int) -> str:
        return f"{self.origin}, {self.called(i)}"

    def open(self, i: int) -> Image:
        return self.images[i]


@dataclass(frozen=True)
class Rows:
    """One group of a data set to be: pictures and, where known, their labels (N,)."""

    pictures: Pictures
    labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Found:
    """What a reader found. The pictures of a group become the field of the group's name."""

    name: str
    groups: Mapping[str, Rows]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Files that are identified by their bytes, ``digest``, before anything in them is decoded, and how to read them."""

    name: str
    digest: str
    load: Callable[[], Found | Dataset]
