"""A run: iterations with a log, pictures, checkpoints, a progress bar, and a way out at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ganfast.engine.progress import Progress
from ganfast.engine.report import write_report
from ganfast.engine.runfolder import RunFolder
from ganfast.engine.settings import Settings
from ganfast.engine.signals import Interrupts
from ganfast.engine.trainer import Trainer
from ganfast.errors import NonFinite, NotWritable

if TYPE_CHECKING:
    from PIL.Image import Image

_PICTURES = 64  # in a sample grid, or as many whole rows as come near it
_PAIRS = 8  # rows of a picture with several columns
_POINTS, _ARROWS = 1000, 120


def run(trainer: Trainer, until: int, folder: RunFolder | None = None, *, seconds: float = 0.0) -> str:
    """Train until iteration ``until``. Returns the name of the signal that ended it early, or an empty string.

    With a ``folder`` (``trainer.out``) it leaves the log, pictures, checkpoints and report there; ``seconds`` is what the run has
    taken before. A full disk is noted and training goes on. Raises NonFinite where one roll-back did not help.
    """
    log, tick, save = intervals(trainer.settings, until).values()
    began = time.monotonic() - seconds
    unit = max(1, trainer.images_at(until) // max(1, until))
    latest: dict[str, Tensor] = {}  # a lazy phase's terms stand until it runs again
    values: dict[str, float] = {}
    drawable = folder is not None and (trainer.data.image_size > 0 or trainer.data.points == 2)

    with (
        Interrupts() as interrupts,
        Progress(until, start=trainer.steps, unit_images=unit, description=trainer.recipe.name) as bar,
    ):

        def keep(write: Callable[..., Any], *arguments: Any) -> None:
            try:
                write(*arguments)
            except NotWritable as error:
                bar.note(f"{error}; training goes on without it")

        if folder is not None and drawable and trainer.steps == 0:
            keep(folder.save_sample, 0, picture(trainer))
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
                bar.note(f"{error}; back to iteration {trainer.steps}, with other random draws")
                continue
            step = trainer.steps
            last = step == until
            if step % log == 0 or last or not values:
                values = as_floats(latest)
            bar.update(step, values)
            if folder is None:
                continue
            if step % log == 0 or last:
                row = {"step": step, "kimg": trainer.images / 1000, "seconds": time.monotonic() - began}
                keep(folder.append, {**row, "images_per_second": bar.rate.mark(), **values, "skipped": trainer.skipped})
            if drawable and (step % tick == 0 or last):
                keep(folder.save_sample, step, picture(trainer))
            if step % save == 0 or last:
                keep(trainer.save)
            if step % tick == 0 or step % save == 0:
                bar.rate.mark()  # images/s is of training, not of drawing and saving
        if folder is not None:
            if interrupts.requested:
                keep(trainer.save)
            folder.close()
            keep(write_report, folder.path)
        return interrupts.requested


def intervals(settings: Settings, until: int) -> dict[str, int]:
    """Iterations between rows of the log, pictures and checkpoints in a run of ``until`` iterations."""
    tick = settings.tick_every or max(1, until // 20)
    return {
        "log_every": settings.log_every or max(1, until // 200),
        "tick_every": tick,
        "checkpoint_every": settings.checkpoint_every or tick,
    }


def as_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as numbers, by one transfer."""
    return dict(zip(terms, torch.stack([value.float() for value in terms.values()]).tolist(), strict=True))


def picture(trainer: Trainer) -> Image:
    """What the networks make now: a grid of samples, columns of translations, or points over data with the critic beneath."""
    from ganfast.engine import draw

    latent = trainer.recipe.latent
    if trainer.data.points:
        fake = trainer.preview(_POINTS)["samples"]
        real = trainer.data.groups["real"]["real"][:_POINTS]
        surface = trainer.score if trainer.recipe.score else None
        arrows = trainer.pull(_ARROWS) if trainer.recipe.ema else None
        title = f"{trainer.recipe.name}, iteration {trainer.steps}"
        return draw.points(fake, real, surface=surface, arrows=arrows, title=title)
    if trainer.recipe.preview is not None:
        return draw.side_by_side(trainer.preview(_PAIRS))
    columns = latent.columns if latent is not None and latent.columns else int(_PICTURES**0.5)
    return draw.image_grid(trainer.preview(columns * max(1, round(_PICTURES / columns)))["samples"], columns=columns)
