"""From any picture that Pillow opens to 8-bit grey or RGB of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InvalidType, InvalidValue, near

if TYPE_CHECKING:
    from PIL.Image import Image

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
MAX_SIZE = 16_384
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


@dataclass(frozen=True)
class Look:
    """What the pictures are to become: size in pixels and channels (None: as they are), and the Pillow filter that resizes."""

    image_size: int | None = None
    channels: int | None = None
    filter: str = "lanczos"

    def __post_init__(self) -> None:
        size, channels = self.image_size, self.channels
        if size is not None and (not isinstance(size, int) or isinstance(size, bool)):
            raise InvalidType(f"image_size must be a whole number or None, got {size!r}")
        if size is not None and not 1 <= size <= MAX_SIZE:
            raise InvalidValue(f"image_size must be from 1 to {MAX_SIZE} pixels, got {size}")
        if channels not in (None, 1, 3):
            raise InvalidValue(f"channels must be 1 (grey), 3 (colour) or None (as the images are), got {channels!r}")
        if self.filter not in FILTERS:
            raise InvalidValue(f"unknown resize filter {self.filter!r}{near(str(self.filter), FILTERS)}")


def is_grey(image: Image) -> bool:
    """Whether a picture is grey by its format: its mode, or a palette of greys."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GREY_MODES or image.mode.startswith("I;16")


def resolved(image: Image) -> Image:
    """The picture upright, in mode ``L`` or ``RGB``.

    EXIF orientation is applied, palettes are resolved, alpha is composited on white. 16-bit grey maps 0 .. 65535 to 0 .. 255, and
    float grey 0 .. 1; a picture of integers or floats outside these ranges raises ValueError.
    """
    from PIL import Image, ImageOps

    grey = is_grey(image)
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        top = 1.0 if image.mode == "F" else 65535.0
        values = np.asarray(image, np.float64)
        if not (values.min() >= 0 and values.max() <= top):
            raise ValueError(f"pixels of mode {image.mode} must lie in 0 .. {top:g}, got {values.min():g} .. {values.max():g}")
        image = Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if grey else "RGB")


def fitted(image: Image, look: Look) -> NDArray[np.uint8]:
    """The resolved picture cropped to its central square and resized, with the channels asked for: uint8 (H, W, C)."""
    from PIL import Image

    image = resolved(image)
    if look.channels is not None:
        image = image.convert("L" if look.channels == 1 else "RGB")
    if look.image_size is not None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((look.image_size, look.image_size), Image.Resampling[look.filter.upper()])
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)
