"""The pictures of a run in motion, and pictures as few bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ganfast.engine.draw import BLUE
from ganfast.errors import Damaged, InvalidValue
from ganfast.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FRAMES = 60
FILM = 640  # pixels of a film's longer side
ANIMATION_BYTES = 3_000_000


def animation(frames: Sequence[Path], out: Path, *, seconds: float = 8, budget: int = ANIMATION_BYTES) -> Path:
    """The pictures of a run as one looping film of about ``seconds``, its last frame held; a bar along the bottom shows the time.

    Animated WebP: every browser plays it and code hosts show it in a README like any picture, in full colour and at about a tenth
    of a GIF's bytes. At most 60 frames, evenly picked, first and last among them, and ``budget`` bytes.
    """
    from PIL import Image, ImageDraw

    if not frames:
        raise InvalidValue(f"{out.name}: expected at least one frame, got none")
    if out.suffix != ".webp":
        raise InvalidValue(f"expected an animation named *.webp, got {out.name}")
    chosen = spread(frames, FRAMES)
    pictures: list[Image.Image] = []
    size = _fitted(load(chosen[-1]).size, FILM)
    for index, place in enumerate(chosen, start=1):
        frame = Image.new("RGB", (size[0], size[1] + 5), "white")
        frame.paste(load(place).resize(size, Image.Resampling.LANCZOS))
        ImageDraw.Draw(frame).rectangle((0, size[1] + 1, size[0] * index // len(chosen), size[1] + 4), fill=BLUE)
        pictures.append(frame)
    hold = min(2.0, seconds / 3)
    each = round(1000 * (seconds - hold) / max(1, len(pictures) - 1))
    durations = [min(each, 1000)] * (len(pictures) - 1) + [round(1000 * hold)]
    write_atomically(out, webp(pictures, budget, durations))
    return out


def load(place: Path) -> Image:
    """A picture file as RGB. Raises Damaged, naming it, where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(place) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise Damaged(f"{place}: expected a picture: {error}") from None


def webp(frames: Sequence[Image], budget: int, durations: Sequence[int] | None = None) -> bytes:
    """One picture, or several with their durations in ms, as WebP of at most ``budget`` bytes: first quality goes, then size."""
    for shrink in (1, 2, 4):
        sized = [frame.reduce(shrink) if shrink > 1 else frame for frame in frames]
        for quality in (82, 60, 35):
            buffer = io.BytesIO()
            options: dict[str, Any] = {"quality": quality, "method": 4}
            if durations is not None:
                options |= {"save_all": True, "append_images": sized[1:], "duration": list(durations), "loop": 0}
            sized[0].save(buffer, format="WEBP", **options)
            if buffer.tell() <= budget:
                return buffer.getvalue()
    raise InvalidValue(f"cannot fit {len(frames)} pictures of {frames[0].size} into {budget} bytes")


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly apart, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _fitted(size: tuple[int, int], most: int) -> tuple[int, int]:
    """``size`` scaled down, where it must be, until its longer side is at most ``most``."""
    ratio = min(1.0, most / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))
