"""The scorer of a run in training: its own data as the real side, a bounded number of samples, scores that are soon there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.evaluation import measures
from ganfast.evaluation.compared import ImageSet, of_dataset
from ganfast.evaluation.features import Side, extracted
from ganfast.evaluation.references import side_of
from ganfast.metrics.feature_network import Images
from ganfast.metrics.networks import network

if TYPE_CHECKING:
    from ganfast.engine.trainer import Trainer

REALS = 10_000  # of the data at most, drawn by a seed of their own: every run on them has the same ones


class TrainingScorer:
    """See :class:`ganfast.engine.evaluate.Scorer`.

    Raises InvalidValue for settings of the trainer that ask for what cannot be had, and what loading the network raises.
    """

    def __init__(self, trainer: Trainer) -> None:
        settings, data = trainer.settings, trainer.data
        self._measures = measures.named(settings.evaluates)
        self._choices = measures.Choices()
        if trainer.recipe.sample_reads:
            raise InvalidValue(
                f"eval_metrics: recipe {trainer.recipe.name!r} makes its samples from the data, which is no side to compare "
                "them with: score them by ganfast eval RUN --against FOLDER"
            )
        self._reals = of_dataset(data, REALS if len(data) > REALS else None)
        samples = ImageSet({}, settings.eval_n, tuple)
        measures.check(self._measures, self._choices, samples, self._reals)
        self._network = network(settings.eval_network, device=trainer.device)
        first = next(iter(self._measures.values()))
        self.best_by = first.names(self._network)[first.best]
        self.less_is_better = first.less_is_better
        self._real: Side | None = None
        self._told = {"name": trainer.recipe.name, "seed": settings.seed}

    def prepare(self, check: Callable[[], None]) -> None:
        """Features of the real side, once."""

        def watched(chunks: Iterable[Images]) -> Iterable[Images]:
            for chunk in chunks:
                check()
                yield chunk

        if self._real is None:
            _, needs = measures.needs(self._measures)
            self._real = side_of(self._reals, self._network, needs, watch=watched)

    def scores(self, samples: Iterable[Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        """Scores of the samples by name, and their manifest."""
        assert self._real is not None
        needs, _ = measures.needs(self._measures)
        fake = extracted(self._network, samples, needs, self._told)
        together = self._measures, fake, self._real, self._network, self._choices
        return measures.scored(*together), measures.manifest(*together)
