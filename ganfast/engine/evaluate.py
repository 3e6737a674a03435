"""Scores of a run's samples while it trains, and the checkpoint that is kept for the best of them.

Nothing here changes training: samples are those of the moving averages, made without gradients from draws of their own, the same
ones each time. What is known of scores stands in evaluations.jsonl alone, so a run that goes on knows the best one again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ganfast.engine.runfolder import METRIC, RunFolder
from ganfast.engine.signals import Interrupted, Interrupts
from ganfast.engine.trainer import Trainer

T = TypeVar("T")


class Scorer(Protocol):
    """What samples are scored by, reference side included; :mod:`ganfast.evaluation` has one."""

    @property
    def best_by(self) -> str:
        """The score that says which samples are the best."""

    @property
    def less_is_better(self) -> bool: ...

    def prepare(self, check: Callable[[], None]) -> None:
        """Have the reference side ready; ``check`` is called now and then, and what it raises ends it."""

    def scores(self, samples: Iterable[Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        """Scores by name, of uint8 images (k, H, W, C) some at a time, and how they were taken, ready for JSON."""


class Evaluation:
    """When a run is scored, what of it is written to its folder, and which checkpoint is its best."""

    def __init__(self, trainer: Trainer, folder: RunFolder, scorer: Scorer, interrupts: Interrupts) -> None:
        self._trainer, self._folder, self._scorer, self._interrupts = trainer, folder, scorer, interrupts
        self._key = METRIC + scorer.best_by

    def begin(self, until: int, note: Callable[[str], None]) -> None:
        """Take up what the folder knows, have the real side ready, and do what was due.

        The best checkpoint is the best that is still there. Raises NotWritable.
        """
        self._trainer.choose_best(self._order())
        with suppress(Interrupted):
            self._scorer.prepare(self._interrupts.check)
        if self.due(until):
            self.run(note)

    def due(self, until: int) -> bool:
        """Whether the samples of this iteration are scored: those of the last one always are, and none twice."""
        step, every = self._trainer.steps, 1000 * self._trainer.settings.evaluates_every
        seen, before = (self._trainer.images_at(number) // every for number in (step, max(0, step - 1)))
        return (seen > before or step == until > 0) and step not in self._known()

    def run(self, note: Callable[[str], None]) -> bool:
        """Score the samples, add a row, and save where they are the best so far. Returns whether a checkpoint was saved.

        Where a signal asks for an end meanwhile, nothing is written: a run that goes on begins by scoring. Raises NotWritable.
        """
        trainer, settings = self._trainer, self._trainer.settings
        began = time.monotonic()
        try:
            self._scorer.prepare(self._interrupts.check)  # where that was interrupted
            samples = trainer.stream(settings.eval_n, seed=settings.seed)
            scores, manifest = self._scorer.scores(self._polled(samples))
        except Interrupted:
            return False
        row: dict[str, Any] = {"step": trainer.steps, "kimg": trainer.images / 1000, "seconds": time.monotonic() - began}
        row["n"] = settings.eval_n
        told = {"best_by": self._scorer.best_by, "less_is_better": self._scorer.less_is_better, "manifest": manifest}
        self._folder.append_evaluation({**row, **{METRIC + name: value for name, value in scores.items()}, **told})
        best = self._order([trainer.steps, trainer.best_step])[:1] == [trainer.steps]
        note(f"iteration {trainer.steps}: {self._scorer.best_by} {scores[self._scorer.best_by]:.4g}{', the best so far' * best}")
        if best:
            trainer.save()
            trainer.choose_best([trainer.steps])
        return best

    def _polled(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            self._interrupts.check()
            yield item

    def _known(self) -> dict[int, float]:
        """Steps that were scored, and how; of two equal ones the earlier is the better.

        Scores of another number of samples are no match for these: a Frechet distance of fewer is larger.
        """
        rows = (row for row in self._folder.evaluations() if row.get("n") == self._trainer.settings.eval_n)
        return {row["step"]: row[self._key] for row in rows if row.get(self._key) is not None}

    def _order(self, among: Sequence[int | None] | None = None) -> list[int]:
        """The steps whose samples were scored, or those of them that are ``among`` these, best first."""
        known = {step: score for step, score in self._known().items() if not math.isnan(score) and step in (among or [step])}
        sign = 1 if self._scorer.less_is_better else -1
        return sorted(known, key=lambda step: (sign * known[step], step))
