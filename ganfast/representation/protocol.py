"""How well a linear classifier tells classes apart by a critic's features, by k-means features and by pixels.

Radford et al. 2016, section 5: features are learned without labels, then a regularised linear L2-SVM is fitted to few or many
labelled images. All representations get the same images, and choose C by the same held-out ones.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ganfast import recipes
from ganfast._version import __version__
from ganfast.api import Trainer
from ganfast.data import Dataset, open_dataset
from ganfast.engine.randomness import seeded
from ganfast.errors import InvalidData, InvalidValue
from ganfast.representation import svm
from ganfast.representation.critic import critic_of, layer_features
from ganfast.representation.features import Images, Transform, by_critic, by_kmeans, extract, pixels, standardise
from ganfast.representation.splits import draws, split

COUNTS = (100, 300, 1000, 3000)  # labelled images that are fitted, beside all there are
COSTS = tuple(10 ** (k / 2) for k in range(-2, 4))  # C, tried upwards
CENTROIDS = 800  # makes 3,200 features, about as many as the default critic of 28 x 28 images has
REPEATS = 5
_TUNED = 10_000  # images that C is tried with, at most: what it weighs is one image, whatever their number

Watch = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Row:
    """Test accuracy of a representation of ``dims`` features by ``count`` labelled images.

    The mean of ``draws`` choices of these images, the standard deviation over them, and the median of their C.
    """

    representation: str
    dims: int
    count: int
    accuracy: float
    deviation: float | None
    draws: int
    cost: float


@dataclass(frozen=True)
class Result:
    """Rows in the order of representations and counts, and what they were measured on; ``json`` is both, ready to be written."""

    rows: list[Row]
    manifest: dict[str, Any]

    @property
    def json(self) -> dict[str, Any]:
        return {"rows": [asdict(row) for row in self.rows], "manifest": self.manifest}


class _Labelled(NamedTuple):
    dataset: Dataset
    images: Images
    labels: Tensor


class _Part(NamedTuple):
    features: Tensor
    labels: Tensor


def represent(
    run: str | os.PathLike[str] | Trainer,
    data: Any,
    *,
    test_data: Any = None,
    train: int | None = None,
    test: int | None = None,
    counts: Sequence[int] | None = None,
    repeats: int = REPEATS,
    centroids: int = CENTROIDS,
    network: str | None = None,
    seed: int = 0,
    device: str = "auto",
    watch: Watch = lambda items, total, name: items,
) -> Result:
    """Pixels, k-means features, and features of the critic of ``run``, untrained and trained, under the same linear classifier.

    ``run`` is the folder of a run or of one of its checkpoints, or a trainer. ``data`` and ``test_data`` are labelled images of
    any kind that :func:`ganfast.data.open_dataset` takes, opened in the run's size and channels; without ``test_data``, a part
    of ``data`` is tested. ``train`` and ``test`` are how many images to use, see :func:`ganfast.representation.splits.split`.
    Of each of ``counts`` (100, 300, 1,000 and 3,000 unless given, as far as there are so many) there are ``repeats`` balanced
    draws, and all images are fitted at last. ``network`` names the critic where a recipe has several.

    Everything follows from ``seed``. Features take 4 bytes times images times dims, one representation at a time.
    ``watch(items, total, name)`` is put around the work.

    Raises InvalidValue for a run without a convolutional critic of images, for counts that do not fit and for features that are
    all the same, InvalidData for data without labels or with too few images of a class.
    """
    for name, value, least in (("repeats", repeats, 1), ("centroids", centroids, 2), ("seed", seed, 0)):
        if value < least:
            raise InvalidValue(f"{name}: expected at least {least}, got {value}")
    trainer = run if isinstance(run, Trainer) else Trainer.resume(run, device=device, training=False)
    critic_name = critic_of(trainer.recipe, trainer.networks, network)
    given = _labelled(data, trainer)
    tested = given if test_data is None else _labelled(test_data, trainer)
    test_labels = None if test_data is None else tested.labels
    parts = split(given.labels, test_labels, train=train, test=test, seed=seed, names=given.dataset.class_names)
    known = given.labels[parts.train].unique()
    labels = [torch.searchsorted(known, side.labels[rows]) for side, rows in zip((given, given, tested), parts, strict=True)]
    chosen = _chosen(labels[0], len(known), counts, repeats, seed)

    made: dict[str, Callable[[], Transform]] = {
        "pixels": lambda: pixels,
        "k-means": lambda: by_kmeans(given.images, parts.train, centroids, torch.Generator().manual_seed(seed), trainer.device),
        "untrained critic": lambda: by_critic(_untrained(trainer, critic_name)),
        "critic": lambda: by_critic(trainer.networks[critic_name]),
    }
    if not trainer.config["named"]:
        del made["untrained critic"]  # a recipe of one's own cannot be built anew
    rows = []
    for name, transform in made.items():
        images = [(side.images, numbers) for side, numbers in zip((given, given, tested), parts, strict=True)]
        features = extract(transform(), images, trainer.device, partial(_named, watch, name))
        standardise(features, name)
        pairs = [_Part(f, y.to(trainer.device)) for f, y in zip(features, labels, strict=True)]
        fits = watch(_fits(pairs, chosen, len(known)), len(chosen), f"{name}, classifiers")
        rows += _rows(name, features[0].shape[1], fits)
        del features, pairs
    told = {
        **_told(trainer, critic_name),
        "data": {"name": given.dataset.name, "digest": given.dataset.digest},
        "test_data": {"name": tested.dataset.name, "digest": tested.dataset.digest},
        "critic_saw_test_images": tested.dataset.digest == trainer.config["data"]["digest"],
        "images": {part: len(numbers) for part, numbers in parts._asdict().items()},
        "classes": len(known),
        "seed": seed,
        "repeats": repeats,
        "centroids": centroids,
        "costs": COSTS,
    }
    return Result(rows, told)


def _labelled(source: Any, trainer: Trainer) -> _Labelled:
    """Raises InvalidValue for a run of points, InvalidData for anything that is no set of labelled images."""
    if not trainer.data.image_size:
        raise InvalidValue(f"the run in {trainer.out} makes points, and representations are of images")
    size, channels = trainer.data.image_size, trainer.data.channels
    dataset = open_dataset(
        source, image_size=size, channels=channels, filter=trainer.config["data"]["options"].get("filter", "lanczos")
    )
    fields = dataset.groups.get("real", {})
    if not dataset.image_size or not {"real", "labels"} <= fields.keys():
        raise InvalidData(
            f"{dataset.name} has {', '.join(dataset.fields)}: expected images with labels, such as a folder with a sub-folder "
            "for each class, or fashion-mnist"
        )
    return _Labelled(dataset, fields["real"], torch.from_numpy(fields["labels"].copy()))


def _chosen(labels: Tensor, classes: int, counts: Sequence[int] | None, repeats: int, seed: int) -> list[Tensor | None]:
    """Which rows to fit: repeated draws of each count, and None for all."""
    there = len(labels)
    counts = [count for count in COUNTS if classes <= count < there] if counts is None else counts
    for count in counts:
        if not classes <= count <= there:
            raise InvalidValue(f"counts: expected from {classes}, one for each class, to {there} images to fit, got {count}")
    smaller = sorted({count for count in counts if count < there})
    return [rows for count in smaller for rows in draws(labels, count, repeats, seed)] + [None]


def _fits(parts: list[_Part], chosen: list[Tensor | None], classes: int) -> Iterator[tuple[int, float, float]]:
    """Number of labelled images, C and test accuracy of each choice of rows to fit."""
    train, validation, test = parts
    for rows in chosen:
        if rows is None:
            some = _Part(train.features[:_TUNED], train.labels[:_TUNED])
        else:
            there = rows.to(train.labels.device)
            some = _Part(train.features[there], train.labels[there])
        cost, weights = tuned(some, validation, classes)
        count = len(some.labels)
        if rows is None and len(train.labels) > count:
            count = len(train.labels)
            weights = svm.fit(*train, classes, cost, weights)
        yield count, cost, svm.accuracy(*test, weights)


def tuned(train: _Part, validation: _Part, classes: int) -> tuple[float, Tensor]:
    """The C of :data:`COSTS` with the highest accuracy on held-out images, the smaller of equals, and its weights.

    They are tried upwards, each fit beginning at the one before, until two in a row were no better.
    """
    best, found, worse = -1.0, (COSTS[0], torch.empty(0)), 0
    weights = None
    for cost in COSTS:
        weights = svm.fit(*train, classes, cost, weights)
        accuracy = svm.accuracy(*validation, weights)
        best, found, worse = (accuracy, (cost, weights), 0) if accuracy > best else (best, found, worse + 1)
        if worse == 2:
            break
    return found


def _rows(name: str, dims: int, fits: Iterable[tuple[int, float, float]]) -> list[Row]:
    by_count: dict[int, list[tuple[float, float]]] = {}
    for count, cost, accuracy in fits:
        by_count.setdefault(count, []).append((cost, accuracy))
    rows = []
    for count, pairs in by_count.items():
        costs, accuracies = zip(*pairs, strict=True)
        deviation = stdev(accuracies) if len(pairs) > 1 else None
        rows.append(Row(name, dims, count, fmean(accuracies), deviation, len(pairs), median(costs)))
    return rows


def _named(watch: Watch, name: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    return watch(items, total, name)


def _untrained(trainer: Trainer, name: str) -> nn.Module:
    """The critic as it was before its first step."""
    config = trainer.config
    with seeded(torch.device("cpu"), config["engine"]["seed"]):
        recipe = recipes.get(config["recipe"], **config["options"])
    critic: Any = recipe.networks[name]
    return critic.to(trainer.device, memory_format=torch.channels_last)


def _told(trainer: Trainer, name: str) -> dict[str, Any]:
    """The run and its critic's layers, for the manifest."""
    size, channels = trainer.data.image_size, trainer.data.channels
    layers = layer_features(trainer.networks[name], torch.zeros(1, channels, size, size, device=trainer.device))
    config = trainer.config
    return {
        "run": str(trainer.out),
        "recipe": trainer.recipe.name,
        "step": trainer.steps,
        "network": name,
        "layers": [list(maps.shape[1:]) for maps in layers],
        "trained_on": {"name": config["data"]["name"], "digest": config["data"]["digest"]},
        "device": str(trainer.device),
        "versions": {"ganfast": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
