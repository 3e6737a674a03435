"""What can be compared: images of a data set, samples of a run, and files of features or of their mean and covariance."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganfast.data import Dataset
from ganfast.data.host import permuted
from ganfast.engine.checkpoint import MANIFEST
from ganfast.engine.runfolder import CONFIG
from ganfast.engine.samples import CHUNK
from ganfast.errors import InvalidData, InvalidType, InvalidValue
from ganfast.evaluation.features import Side, of_features
from ganfast.metrics.feature_network import Images
from ganfast.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    from ganfast.api import Trainer

FEATURES = ("features", "feats")  # ours, and clean-fid's


@dataclass(frozen=True)
class ImageSet:
    """``n`` images uint8 (k, H, W, C), ``batch`` at a time; ``told`` identifies them, ready for JSON."""

    told: dict[str, Any]
    n: int
    chunks: Callable[[], Iterable[Images]]
    batch: int = CHUNK

    @property
    def batches(self) -> int:
        return -(-self.n // self.batch)


def of_dataset(dataset: Dataset, n: int | None = None, *, seed: int = 0, batch: int = CHUNK) -> ImageSet:
    """All images of a data set, or ``n`` of them in an order that the seed draws.

    Raises InvalidValue for points, pairs, and too few images.
    """
    if not dataset.image_size:
        raise InvalidValue(f"{dataset.name} holds points, and scores are of images")
    if "real" not in dataset.groups:
        sides = ", ".join(dataset.groups)
        raise InvalidValue(f"{dataset.name} holds the sides {sides} of a pair: give the folder of one of them")
    images = dataset.groups["real"]["real"]
    count = len(images) if n is None else n
    if count > len(images):
        raise InvalidValue(f"{dataset.name} has {len(images)} images, and {count} were asked for")
    told: dict[str, Any] = {"name": dataset.name, "digest": dataset.digest, "of": len(images), "image_size": dataset.image_size}
    rows = np.arange(count) if n is None else permuted(0, count, len(images), seed)
    if n is not None:
        told["seed"] = seed

    def chunks() -> Iterator[Images]:
        for start in range(0, count, batch):
            yield images[rows[start : start + batch]]

    return ImageSet(told, count, chunks, batch)


def of_run(trainer: Trainer, n: int, *, seed: int = 0) -> ImageSet:
    """Samples of the moving averages. Raises InvalidValue for a run of points."""
    if not trainer.data.image_size:
        raise InvalidValue(f"the run in {trainer.out} makes points, and scores are of images")
    told = {
        "name": trainer.recipe.name,
        "run": str(trainer.out),
        "step": trainer.steps,
        "data": trainer.config["data"]["digest"],
        "seed": seed,
    }
    return ImageSet(told, n, lambda: trainer.stream(n, seed=seed))


def run_at(place: Any, device: str) -> Trainer | None:
    """The run, or the checkpoint of one, that a path leads to; None where it leads to something else."""
    if not isinstance(place, str | os.PathLike) or not any(os.path.exists(Path(place) / name) for name in (CONFIG, MANIFEST)):
        return None
    from ganfast.api import Trainer

    return Trainer.resume(place, device=device, training=False)


def of_file(path: Path) -> Side | None:
    """The side that an npz of ``mu`` and ``sigma``, or of features, is; None for any other.

    Raises InvalidData where it is damaged, or its numbers are not what they should be.
    """
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    told = {"name": path.name, "file": str(path)}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if {"mu", "sigma"} <= set(arrays.files):
                statistics = FeatureStatistics.load(path)
                return Side(told, statistics.count, statistics)
            name = next((name for name in FEATURES if name in arrays.files), None)
            return None if name is None else of_features(arrays[name], told)
    except InvalidData:
        raise
    except (InvalidValue, InvalidType) as error:
        raise InvalidData(f"{path}: {error}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidData(f"{path} cannot be read as npz: {error}") from None
