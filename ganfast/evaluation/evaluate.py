"""Scores of a run, of images or of features against real images, and how they were taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ganfast.data import open_dataset
from ganfast.engine.samples import CHUNK
from ganfast.engine.settings import resolve_device
from ganfast.errors import InvalidValue
from ganfast.evaluation import measures
from ganfast.evaluation.compared import ImageSet, of_dataset, of_file, of_run, run_at
from ganfast.evaluation.features import Need, Side, extracted
from ganfast.evaluation.measures import Choices, Measure
from ganfast.evaluation.references import side_of
from ganfast.metrics.feature_network import Images
from ganfast.metrics.networks import INCEPTION
from ganfast.metrics.networks import network as network_of
from ganfast.metrics.protocols import protocol_named

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 10_000  # of a run, unless told otherwise
Watch = Callable[[Iterable[Images], int, str], Iterable[Images]]


@dataclass(frozen=True)
class Scores:
    """Scores by name, and the manifest: network, preset, weights, both sides, choices, versions. Both are ready for JSON."""

    values: dict[str, float]
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How many images: ``n`` against ``n_real`` for what compares two sides, ``n_score`` for what looks at one; and how."""

    n: int | None
    n_real: int | None
    n_score: int | None
    preset: str | None
    choices: Choices

    @staticmethod
    def of(protocol: str | None, given: Mapping[str, Any], *, is_inception: bool) -> Plan:
        """What was given, or what the protocol says. Raises InvalidValue where both speak of the same."""
        if protocol is None:
            return Plan(given["n"], given["n_real"], given["n"], given["preset"], given["choices"] or Choices())
        rule = protocol_named(protocol)
        for name, value in given.items():
            if value is not None:
                raise InvalidValue(f"{name}: protocol {protocol!r} says what it is; leave out one of the two")
        choices = Choices(splits=rule.splits, subsets=rule.subsets, subset_size=rule.subset_size)
        return Plan(rule.n_fake, rule.n_real, rule.n_score, rule.preset if is_inception else None, choices)

    def samples(self, asked: Mapping[str, Measure]) -> int | None:
        """How many the fake side has for all of these measures; None is all there are."""
        counts = [self.n if measure.real else self.n_score for measure in asked.values()] or [self.n]
        return None if None in counts else max(count for count in counts if count is not None)


def evaluate(
    what: Any,
    against: Any = None,
    *,
    metrics: str | Iterable[str] = "fid",
    network: str | nn.Module = INCEPTION,
    preset: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    protocol: str | None = None,
    n: int | None = None,
    n_real: int | None = None,
    choices: Choices | None = None,
    seed: int = 0,
    device: str = "auto",
    batch: int = CHUNK,
    save_statistics: str | os.PathLike[str] | None = None,
    watch: Watch = lambda chunks, count, name: chunks,
    **look: Any,
) -> Scores:
    """Score ``what`` against real images.

    ``what`` is the path of a run or of one of its checkpoints, of which ``n`` samples are made (10,000 unless given), or anything
    that can be ``against``: data of any kind that :func:`ganfast.data.open_dataset` opens, of which all images are taken, or
    ``n`` and ``n_real`` of them in an order that the ``seed`` draws; or the path of an npz with ``mu`` and ``sigma``
    (pytorch-fid's, clean-fid's, ours) or with ``features`` (N, D). Without ``against`` a run is compared with its own data.
    ``look`` (image_size, channels, filter) is how data are opened; for data against a run it is the run's own unless given.

    ``metrics`` are those of :data:`ganfast.evaluation.measures.MEASURES`, and :func:`ganfast.metrics.networks.network` says what
    ``network``, ``preset`` and ``weights`` may be. A ``protocol`` of :mod:`ganfast.metrics.protocols` stands for counts, preset
    and choices. ``save_statistics`` is an npz that mean and covariance of ``what`` are written to. ``watch(chunks, count, name)``
    is put around a side's images as they are read. Features of real data are kept under $GANFAST_CACHE.

    Raises what these raise, and InvalidValue where there are too few images, or a file does not hold what a metric needs.
    """
    asked = measures.named(metrics, none=save_statistics is not None)
    given = {"n": n, "n_real": n_real, "preset": preset, "choices": choices}
    plan = Plan.of(protocol, given, is_inception=network == INCEPTION)
    made_by = network_of(network, preset=plan.preset, weights=weights, device=resolve_device(device))
    needs, real_needs = measures.needs(asked)
    samples, trainer = plan.samples(asked), run_at(what, device)
    fake: ImageSet | Side
    if trainer is None:
        fake = opened(what, samples, seed, batch, look)
    else:
        fake = of_run(trainer, SAMPLES if samples is None else samples, seed=seed)
        described = trainer.config["data"]
        look = {"image_size": trainer.data.image_size, "channels": trainer.data.channels, **described["options"], **look}
        against = described["source"] if against is None else against
    if against is None and real_needs:
        raise InvalidValue(f"against: {', '.join(asked)} of {fake.told['name']} needs real images to compare it with")
    real = opened(against, plan.n_real, seed, batch, look) if real_needs else Side({}, None)
    measures.check(asked, plan.choices, fake, real)

    if isinstance(fake, ImageSet):
        needs |= frozenset[Need](["statistics"] if save_statistics is not None else [])
        chunks = watch(fake.chunks(), fake.batches, fake.told["name"])
        fake = extracted(made_by, chunks, needs, fake.told, n=plan.n if real_needs else None)
    if isinstance(real, ImageSet):
        images = real
        if isinstance(network, str):
            real = side_of(images, made_by, real_needs, watch=lambda chunks: watch(chunks, images.batches, "real images"))
        else:  # a module of one's own is not known by its weights alone
            real = extracted(made_by, watch(images.chunks(), images.batches, "real images"), real_needs, images.told)
    scores = measures.scored(asked, fake, real, made_by, plan.choices)
    told = measures.manifest(asked, fake, real, made_by, plan.choices)
    if save_statistics is not None:
        if fake.statistics is None:
            raise InvalidValue(f"{fake.told['name']} holds no mean and covariance to save")
        fake.statistics.save(Path(save_statistics))
    return Scores(scores, {"protocol": protocol, **told})


def opened(source: Any, n: int | None, seed: int, batch: int, look: Mapping[str, Any]) -> ImageSet | Side:
    """Images of data, or what a file has of their features."""
    side = of_file(Path(source)) if isinstance(source, str | os.PathLike) else None
    if side is None:
        return of_dataset(open_dataset(source, **look), n, seed=seed, batch=batch)
    if n is not None:
        raise InvalidValue(f"{side.told['name']} holds no images to take {n} of: leave that out")
    return side
