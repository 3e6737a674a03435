"""Samples as files: one grid, one array, or a folder of pictures, by the ending of the name."""

from __future__ import annotations

import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.engine import draw
from ganfast.errors import InvalidValue, NotWritable
from ganfast.files import write_atomically

Write = Callable[[NDArray[Any]], None]


def writer(target: Path) -> Write:
    """What writes samples (uint8 (n, H, W, C) or points (n, 2)) to ``target``.

    .png, .npy, .npz (``samples``), otherwise a folder.

    Raises InvalidValue for an ending that is none of these, NotWritable where the place is taken or cannot be written; asked for
    before anything slow is done.
    """
    kinds: dict[str, Write] = {
        ".png": lambda samples: write_atomically(target, _png(samples)),
        ".npy": lambda samples: write_atomically(target, _bytes(lambda file: np.save(file, samples))),
        ".npz": lambda samples: write_atomically(target, _bytes(lambda file: np.savez_compressed(file, samples=samples))),
        "": lambda samples: _folder(target, samples),
    }
    if target.suffix not in kinds:
        raise InvalidValue(f"{target}: expected a name ending in .png, .npy or .npz, or a folder without an ending")
    nearest = next(place for place in target.absolute().parents if os.path.exists(place))
    if not nearest.is_dir():
        raise NotWritable(f"cannot write {target}: expected a folder, and {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise NotWritable(f"cannot write to {nearest}: permission denied")
    try:
        kind = target.stat().st_mode
        taken = stat.S_ISDIR(kind) and (bool(target.suffix) or any(target.iterdir()))
    except FileNotFoundError:
        kind, taken = 0, False
    except OSError as error:
        raise NotWritable(f"cannot write {target}: {error.strerror}") from error
    if taken:
        raise NotWritable(f"{target} is a folder that is not empty; choose another name")
    if stat.S_ISREG(kind) and not target.suffix:
        raise NotWritable(f"{target} is a file; expected the name of a new folder")

    def write(samples: NDArray[Any]) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NotWritable(f"cannot make the folder {target.parent}: {error.strerror}") from error
        kinds[target.suffix](samples)

    return write


def _png(samples: NDArray[Any]) -> bytes:
    picture = draw.image_grid(samples) if samples.ndim == 4 else draw.points(samples, samples[:0])
    return _bytes(lambda file: picture.save(file, format="PNG"))


def _folder(target: Path, samples: NDArray[Any]) -> None:
    from PIL import Image

    if samples.ndim != 4:
        raise InvalidValue(f"{target}: points are no pictures; write them to a name ending in .npy, .npz or .png")
    target = target.absolute()  # a name to write beside, also where target is "."
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir()
        for number, image in enumerate(samples):
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(temporary / f"{number:06d}.png")
        os.rename(temporary, target)
    except OSError as error:
        raise NotWritable(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _bytes(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
