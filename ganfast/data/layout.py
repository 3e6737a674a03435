"""What the names of images in a folder or archive say: one set, classes by sub-folder, or the two sides of an unpaired pair."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import labels as label_rules
from ganfast.errors import InvalidData

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".avif")
PAIR = {"a": "trainA", "b": "trainB"}
LABEL_FILE = "dataset.json"


@dataclass(frozen=True)
class Side:
    """The images of one group, by name and in order, and their labels if known."""

    names: Sequence[str]
    labels: NDArray[np.int64] | None = None


def is_image(name: str) -> bool:
    """By its suffix; hidden files and what macOS adds to archives are none."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in SUFFIXES


def arranged(names: Sequence[str], read: Callable[[str], bytes], where: str) -> tuple[dict[str, Side], tuple[str, ...]]:
    """Groups and class names that the relative names (with slashes) of all files amount to.

    Folders ``trainA`` and ``trainB`` are the groups a and b. A StyleGAN ``dataset.json``, which ``read`` fetches, gives labels by
    name. Otherwise all images lie in sub-folders, which are the classes in the order of their names, or none does. Folders around
    all of it are passed over. Raises :class:`~ganfast.errors.InvalidData` for no image at all and for what is neither.
    """
    images = sorted((name for name in names if is_image(name)), key=natural)
    if not images:
        raise InvalidData(f"{where} holds no images; known are {' '.join(SUFFIXES)}")
    base = _common_folder(images, frozenset(names))
    paths = {name: PurePosixPath(name).parts[len(base) :] for name in images}

    sides = {group: [name for name in images if paths[name][0] == folder] for group, folder in PAIR.items()}
    if any(sides.values()):
        for group, folder in PAIR.items():
            if not sides[group]:
                raise InvalidData(f"{where} has no images in {folder}; an unpaired set needs both trainA and trainB")
        return {group: Side(chosen) for group, chosen in sides.items()}, ()

    label_file = "/".join((*base, LABEL_FILE))
    if label_file in names:
        prefix = "".join(f"{part}/" for part in base)
        return {"real": Side(images, _stylegan_labels(read(label_file), images, prefix, f"{where}: {label_file}"))}, ()

    top = [name for name in images if len(paths[name]) == 1]
    if len(top) == len(images):
        return {"real": Side(images)}, ()
    if top:
        raise InvalidData(
            f"{where} has {len(top)} images beside its sub-folders (the first is {top[0]}); either all images lie in "
            "sub-folders, which are then the classes, or none does"
        )
    classes = sorted({paths[name][0] for name in images}, key=natural)
    number = {name: k for k, name in enumerate(classes)}
    found = label_rules.checked([number[paths[name][0]] for name in images], len(images), where)
    return {"real": Side(images, found)}, tuple(classes)


def natural(name: str) -> tuple[Any, ...]:
    """Sort key under which 2.png comes before 10.png and class2 before class10, the same on every system."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name) if part), name


def _common_folder(images: Sequence[str], names: frozenset[str]) -> tuple[str, ...]:
    """The folders around everything, as a dataset usually has one; a label file marks where the data begin."""
    base: tuple[str, ...] = ()
    paths = [PurePosixPath(name).parts for name in images]
    while "/".join((*base, LABEL_FILE)) not in names:
        first = {path[len(base)] for path in paths if len(path) > len(base) + 1}
        alone = len(first) == 1 and all(len(path) > len(base) + 1 for path in paths)
        if not alone or first & set(PAIR.values()):
            break
        base = (*base, first.pop())
    return base


def _stylegan_labels(text: bytes, images: Sequence[str], prefix: str, where: str) -> NDArray[np.int64] | None:
    """``{"labels": [[name, number], ...]}`` or ``{"labels": null}``, names relative to the label file."""
    try:
        listed = json.loads(text)["labels"]
        by_name = None if listed is None else {prefix + name.replace("\\", "/"): label for name, label in listed}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidData(f'{where} must hold {{"labels": null}} or {{"labels": [[name, number], ...]}} ({error!r})') from None
    if by_name is None:
        return None
    missing = [name for name in images if name not in by_name]
    if missing or len(by_name) != len(images):
        detail = f"{missing[0]} has none" if missing else f"{next(iter(by_name.keys() - set(images)))} is no image here"
        raise InvalidData(f"{where}: {len(by_name)} labels do not fit {len(images)} images: {detail}")
    return label_rules.checked([by_name[name] for name in images], len(images), where)
