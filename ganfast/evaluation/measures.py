"""The metrics that sides are compared by: what each needs of them, what it gives, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ganfast.errors import InvalidValue, near
from ganfast.evaluation.features import Need, Side
from ganfast.metrics.frechet_infinity import frechet_infinity
from ganfast.metrics.inception_score import inception_score
from ganfast.metrics.kernel_distance import kernel_distance
from ganfast.metrics.prdc import precision_recall_density_coverage

if TYPE_CHECKING:
    from ganfast.evaluation.compared import ImageSet
    from ganfast.metrics.feature_network import FeatureNetwork


@dataclass(frozen=True)
class Choices:
    """What the metrics leave open, as torch-fidelity 0.4 has it by default; ``k`` as Naeem et al. 2020."""

    splits: int = 10  # of an inception score
    subsets: int = 100  # of a kernel distance
    subset_size: int = 1000
    k: int = 5  # neighbours of precision, recall, density and coverage
    seed: int = 2020  # of splits and subsets


@dataclass(frozen=True)
class Measure:
    """A metric: ``values`` gives as many numbers as ``names`` gives names, of which ``best`` says whose samples are better."""

    fake: Need
    real: Need | None  # None: the real side does not come into it
    names: Callable[[FeatureNetwork], tuple[str, ...]]
    values: Callable[[Side, Side, Choices], tuple[float, ...]]
    chosen: tuple[str, ...] = ()  # the choices that it depends on
    best: int = 0
    less_is_better: bool = True
    least: Callable[[Choices], int] = lambda choices: 2  # samples on a side
    short: str = "a covariance needs at least two samples"  # why that many, and what to do


def _fid(fake: Side, real: Side, choices: Choices) -> tuple[float, ...]:
    assert fake.statistics and real.statistics
    return (fake.statistics.frechet_distance(real.statistics),)


def _fid_infinity(fake: Side, real: Side, choices: Choices) -> tuple[float, ...]:
    assert fake.features is not None and real.statistics
    return (frechet_infinity(fake.features, real.statistics, seed=choices.seed),)


def _kid(fake: Side, real: Side, choices: Choices) -> tuple[float, ...]:
    assert fake.features is not None and real.features is not None
    return kernel_distance(
        fake.features, real.features, subsets=choices.subsets, subset_size=choices.subset_size, seed=choices.seed
    )


def _is(fake: Side, real: Side, choices: Choices) -> tuple[float, ...]:
    assert fake.logits is not None
    return inception_score(fake.logits, splits=choices.splits, seed=choices.seed)


def _prdc(fake: Side, real: Side, choices: Choices) -> tuple[float, ...]:
    found = precision_recall_density_coverage(real.manifold(choices.k), fake.manifold(choices.k), k=choices.k)
    return tuple(found[name] for name in _PRDC)


_PRDC = ("precision", "recall", "density", "coverage")

MEASURES: Mapping[str, Measure] = {
    "fid": Measure("statistics", "statistics", lambda network: (network.score_name("fid"),), _fid),
    "fid-infinity": Measure(
        "features",
        "statistics",
        lambda network: (network.score_name("fid-infinity"),),
        _fid_infinity,
        chosen=("seed",),
        least=lambda choices: 20,
        short="its fifteen subsets have a tenth of them and more: take more samples",
    ),
    "kid": Measure(
        "features",
        "features",
        lambda network: (network.score_name("kid"), f"{network.score_name('kid')} std"),
        _kid,
        chosen=("subsets", "subset_size", "seed"),
        least=lambda choices: choices.subset_size,
        short="that is the size of the subsets: take more samples, or smaller ones (--subset-size)",
    ),
    "is": Measure(
        "logits",
        None,
        lambda network: (network.score_name("is"), f"{network.score_name('is')} std"),
        _is,
        chosen=("splits", "seed"),
        less_is_better=False,
        least=lambda choices: choices.splits,
        short="one in each split: take more samples, or fewer --splits",
    ),
    "prdc": Measure(
        "features",
        "features",
        lambda network: tuple(network.score_name(name) for name in _PRDC),
        _prdc,
        chosen=("k",),
        best=_PRDC.index("coverage"),
        less_is_better=False,
        least=lambda choices: choices.k + 1,
        short="a sample must have that many neighbours and itself: take more samples",
    ),
}


def named(metrics: str | Iterable[str], *, none: bool = False) -> dict[str, Measure]:
    """The measures of a list such as ``fid,kid``, in its order.

    Raises InvalidValue for one that there is not, and, unless ``none`` may be, for an empty list.
    """
    names = metrics.replace(",", " ").split() if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in MEASURES:
            raise InvalidValue(f"no metric is called {name!r}{near(name, MEASURES)}")
    if not names and not none:
        raise InvalidValue(f"metrics: expected some of {', '.join(MEASURES)}, got none")
    return {name: MEASURES[name] for name in names}


def needs(measures: Mapping[str, Measure]) -> tuple[frozenset[Need], frozenset[Need]]:
    """What the measures need of the fake side and of the real one."""
    return (
        frozenset(measure.fake for measure in measures.values()),
        frozenset(measure.real for measure in measures.values() if measure.real),
    )


def check(measures: Mapping[str, Measure], choices: Choices, fake: ImageSet | Side, real: ImageSet | Side) -> None:
    """Raises InvalidValue where a side has fewer samples than a metric needs, or is a file that does not hold what it needs."""
    for name, measure in measures.items():
        for kind, side, need in (("fake", fake, measure.fake), ("real", real, measure.real)):
            if need is None:
                continue
            least = measure.least(choices)
            if side.n is not None and side.n < least:
                raise InvalidValue(f"{name} needs at least {least} {kind} samples, got {side.n}: {measure.short}")
            if isinstance(side, Side) and need not in side.has:
                held = ", ".join(sorted(side.has))
                raise InvalidValue(f"{name} needs {need}, and {side.told['name']} holds {held} alone: give the images instead")


def scored(
    measures: Mapping[str, Measure], fake: Side, real: Side, network: FeatureNetwork, choices: Choices
) -> dict[str, float]:
    """All scores of ``fake`` against ``real``, by their names. Raises InvalidValue where the sides are of different networks."""
    if fake.width and real.width and fake.width != real.width:
        raise InvalidValue(
            f"{fake.told['name']} has {fake.width} features an image and {real.told['name']} has {real.width}: "
            "they are of different networks"
        )
    for side in (fake, real):  # what came from a file is not known to be of this network, and must not get its name
        if side.width and network.width and side.width != network.width:
            raise InvalidValue(
                f"{side.told['name']} has {side.width} features an image and {network.name} makes {network.width}: "
                "name the network that made them"
            )
    scores: dict[str, float] = {}
    for measure in measures.values():
        scores |= zip(measure.names(network), measure.values(fake, real, choices), strict=True)
    return scores


def manifest(
    measures: Mapping[str, Measure], fake: Side, real: Side, network: FeatureNetwork, choices: Choices
) -> dict[str, Any]:
    """How scores were taken, ready for JSON: all that somebody else needs to get the same ones."""
    open_to_choice = asdict(choices)
    return {
        "network": network.manifest(),
        "metrics": {
            name: {"n": fake.counted(measure.fake), **{key: open_to_choice[key] for key in measure.chosen}}
            for name, measure in measures.items()
        },
        "fake": {**fake.told, "n": fake.n},
        "real": {**real.told, "n": real.n} if real.told else None,
    }
