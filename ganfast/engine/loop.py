"""A run: iterations with a log, pictures, checkpoints, a progress bar, and a way out at any moment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ganfast.engine.evaluate import Evaluation, Scorer
from ganfast.engine.progress import Progress
from ganfast.engine.report import write_report
from ganfast.engine.runfolder import RunFolder, sample_pictures, step_of
from ganfast.engine.settings import Settings
from ganfast.engine.signals import Interrupts
from ganfast.engine.trainer import Trainer
from ganfast.errors import NonFinite, NotWritable

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = 64  # in a sample grid, or as many whole rows as come near it
_PAIRS = 8  # rows of a picture with several columns
_POINTS, _ARROWS = 1000, 120


def run(
    trainer: Trainer, until: int, folder: RunFolder | None = None, *, seconds: float = 0.0, scorer: Scorer | None = None
) -> str:
    """Train until iteration ``until``. Returns the name of the signal that ended it early, or an empty string.

    With a ``folder`` (``trainer.out``) it leaves the log, pictures, checkpoints and report there, and a ``scorer``'s scores;
    ``seconds`` is what the run has taken before. A full disk is noted and training goes on. A run that is ended early has a row
    and a picture of where it stands, which :func:`rewind` takes away again. Raises NonFinite where one roll-back did not help.
    """
    log, tick, save = intervals(trainer.settings, until).values()
    began = time.monotonic() - seconds
    unit = max(1, trainer.images_at(until) // max(1, until))
    latest: dict[str, Tensor] = {}  # a lazy phase's terms stand until it runs again
    values: dict[str, float] = {}
    drawable = folder is not None and (trainer.data.image_size > 0 or trainer.data.points == 2)

    with (
        contextlib.closing(folder) if folder else contextlib.nullcontext(),  # TensorBoard's thread writes until then
        Interrupts() as interrupts,
        Progress(until, start=trainer.steps, unit_images=unit, description=trainer.recipe.name) as bar,
    ):

        def keep(write: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return write(*arguments)
            except NotWritable as error:
                bar.note(f"{error}; training goes on without it")

        def log_row(folder: RunFolder) -> None:
            row = {"step": trainer.steps, "kimg": trainer.images / 1000, "seconds": time.monotonic() - began}
            keep(folder.append, {**row, "images_per_second": bar.rate.mark(), **values, "skipped": trainer.skipped})

        def draw(folder: RunFolder) -> None:
            if drawable:
                keep(folder.save_sample, trainer.steps, picture(trainer))

        evaluation = None if folder is None or scorer is None else Evaluation(trainer, folder, scorer, interrupts)
        if evaluation is not None:
            keep(evaluation.begin, until, bar.note)
            bar.rate.mark()
        if folder is not None and trainer.steps % tick == 0 and not _sample(folder, trainer.steps):
            draw(folder)
        rolled_back = False
        while trainer.steps < until and not interrupts.requested:
            try:
                latest |= trainer.step()
            except NonFinite as error:
                if rolled_back or folder is None or not trainer.has_checkpoint:
                    raise
                reached, rolled_back = trainer.steps - 1, True
                trainer.roll_back(bar.note)
                bar.rate.add((reached - trainer.steps) * unit)  # what is trained again counts again
                keep(folder.truncate_after, trainer.steps)
                keep(folder.forget_evaluations_after, trainer.steps)
                if evaluation is not None:
                    keep(evaluation.begin, until, bar.note)
                bar.note(f"{error}; back to iteration {trainer.steps}, with other random draws")
                continue
            step = trainer.steps
            if due(step, log, until) or not values:
                values = as_floats(latest)
            bar.update(step, values)
            if folder is None:
                continue
            if due(step, log, until):
                log_row(folder)
            if due(step, tick, until):
                draw(folder)
            scored = evaluation is not None and evaluation.due(until)
            saved = scored and evaluation is not None and keep(evaluation.run, bar.note)
            if due(step, save, until) and not saved:
                keep(trainer.save)
            if step % tick == 0 or step % save == 0 or scored:
                bar.rate.mark()  # images/s is of training, not of drawing, scoring and saving
        if folder is not None:
            if interrupts.requested:
                values = as_floats(latest)
                if not due(trainer.steps, log, until):
                    log_row(folder)
                keep(trainer.save)
                if not due(trainer.steps, tick, until):
                    draw(folder)
            folder.close()
            keep(write_report, folder.path)
        return interrupts.requested


def due(step: int, every: int, until: int) -> bool:
    """Whether ``step`` of a run of ``until`` iterations is one of those that come at this interval; the last one always is."""
    return step % every == 0 or step == until


def rewind(folder: RunFolder, step: int, before: Mapping[str, Any]) -> None:
    """Forget rows and pictures beyond ``step``, and at it those that an interrupt alone left: the run goes on as if without it.

    ``before`` is the configuration that the run had until now. Raises NotWritable.
    """
    every, until = before.get("intervals", {}), before.get("steps", step)
    row, drawn = (due(step, every.get(name, 1), until) for name in ("log_every", "tick_every"))
    folder.truncate_after(step if row else step - 1)  # a picture that goes with the row is drawn again when the run begins
    folder.forget_evaluations_after(step)
    if not drawn and (left := _sample(folder, step)):
        try:
            left.unlink()
        except OSError as error:
            raise NotWritable(f"cannot remove {left}: {error.strerror}") from error


def intervals(settings: Settings, until: int) -> dict[str, int]:
    """Iterations between rows of the log, pictures and checkpoints in a run of ``until`` iterations."""
    tick = settings.tick_every or max(1, until // 20)
    return {
        "log_every": settings.log_every or max(1, until // 200),
        "tick_every": tick,
        "checkpoint_every": settings.checkpoint_every or tick,
    }


def _sample(folder: RunFolder, step: int) -> Path | None:
    """The sample picture of a step, where there is one."""
    return next((place for place in sample_pictures(folder.path) if step_of(place) == step), None)


def as_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, by one transfer."""
    if not terms:
        return {}
    return dict(zip(terms, torch.stack([value.float() for value in terms.values()]).tolist(), strict=True))


def picture(trainer: Trainer) -> Image:
    """What the networks make now: a grid of samples, columns of translations, or points over data with the critic beneath."""
    from ganfast.engine import draw

    latent = trainer.recipe.latent
    if trainer.data.points:
        fake = np.concatenate(list(trainer.preview(_POINTS).values()))
        real = next(field for group in trainer.data.groups.values() for field in group.values() if field.ndim == 2)[:_POINTS]
        surface = trainer.score if trainer.recipe.score else None
        arrows = trainer.pull(_ARROWS) if trainer.recipe.ema else None
        title = f"{trainer.recipe.name}, iteration {trainer.steps}"
        return draw.points(fake, real, surface=surface, arrows=arrows, title=title)
    if trainer.recipe.preview is not None:
        return draw.side_by_side(trainer.preview(_PAIRS))
    columns = latent.columns if latent is not None and latent.columns else int(_PICTURES**0.5)
    return draw.image_grid(trainer.preview(columns * max(1, round(_PICTURES / columns)))["samples"], columns=columns)
