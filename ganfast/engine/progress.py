"""How a run tells what it is doing: a live bar on a terminal, about twenty plain lines anywhere else.

Everything goes to stderr, so that stdout stays free for results.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINES = 20  # printed between the first and the last one when there is no terminal
SETTLED = 1.0  # seconds after which an open interval says more than the last closed one


class Rate:
    """Images per second, measured once and shown everywhere: the bar, the log and the report read the same meter."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._images = 0
        self._closed = 0.0

    def add(self, images: int) -> None:
        """Count images that have been trained on."""
        self._images += images

    def mark(self) -> float:
        """Images/s since the last mark (or the start), and begin a new interval. 0 where none were counted."""
        now = self._clock()
        elapsed = now - self._since
        speed = self._images / elapsed if elapsed > 0 else 0.0
        self._closed = speed or self._closed  # a pause for drawing and saving says nothing about speed
        self._since, self._images = now, 0
        return speed

    @property
    def settled(self) -> bool:
        """Whether the speed is worth extrapolating: the very first step also allocates, warms up and compiles."""
        return self._closed > 0 or self._clock() - self._since >= SETTLED

    @property
    def per_second(self) -> float:
        """Images/s right now, without closing the interval."""
        elapsed = self._clock() - self._since
        if self._images and elapsed > 0 and (elapsed >= SETTLED or not self._closed):
            return self._images / elapsed
        return self._closed


class Progress:
    """A context manager around a training loop of ``total_steps`` steps of ``unit_images`` images each.

    ``update`` may be called every step or every few hundred: it counts the images in between into ``rate``, whose ``mark()``
    belongs to whoever writes the log. ``start`` is the step that a resumed run begins at; it may equal ``total_steps``.
    ``stream`` is stderr unless told otherwise; a stream that breaks (a closed pipe) silences the lines and never the run.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start: int = 0,
        unit_images: int,
        description: str,
        stream: TextIO | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.rate = rate or Rate()
        self._total = total_steps
        self._step = start
        self._unit = unit_images
        self._description = description
        self._stream = sys.stderr if stream is None else stream
        self._values: Mapping[str, float] = {}
        self._stride = max(1, math.ceil((total_steps - start) / LINES))
        self._due = start  # step at which the next line is printed
        self._printed: int | None = None
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self.rate.mark()  # what came before the loop (building, compiling) is not training
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _bar(self._stream)
            self._bar.add_task(self._description, total=self._total, completed=self._step, **self._fields())
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._printed != self._step:
            self._line()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """``step`` steps are done; ``values`` are the row's entries, of which the loss terms are shown, summed by phase;
        none of them leaves the last ones standing.
        """
        self.rate.add((step - self._step) * self._unit)
        self._step, self._values = step, values or self._values
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, **self._fields())
        elif step >= self._due:
            self._line()
            self._due = step + self._stride

    def note(self, text: str) -> None:
        """One line above the bar: a checkpoint saved, a step skipped."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._print(text)

    def _fields(self) -> dict[str, Any]:
        speed = self.rate.per_second
        left = (self._total - self._step) * self._unit / speed if speed else math.inf
        return {
            "losses": "  ".join(f"{phase} {value:.3f}" for phase, value in losses(self._values).items()),
            "speed": f"{_short(speed)} images/s" if speed else "",
            "kimg": f"{self._step * self._unit / 1000:.1f} kimg",
            "left": f"{_clock(left)} left" if speed and self.rate.settled else "",
        }

    def _line(self) -> None:
        steps = f"step {self._step}/{self._total}"
        fields = self._fields()
        shown = (fields["kimg"], fields["losses"], fields["speed"], fields["left"])
        self._print(f"{self._description}: " + " | ".join([steps, *filter(None, shown)]))
        self._printed = self._step

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError):
            print(text, file=self._stream, flush=True)


def losses(values: Mapping[str, float]) -> dict[str, float]:
    """The sum of each phase's terms: ``critic/adversarial`` and ``critic/penalty`` are what the critic minimises."""
    totals: dict[str, float] = {}
    for key, value in values.items():
        phase, _, term = key.partition("/")
        if term and term != "grad_norm" and phase != "metric":
            totals[phase] = totals.get(phase, 0.0) + (math.nan if value is None else value)
    return totals


def _bar(stream: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    def text(template: str, style: str = "") -> TextColumn:
        return TextColumn(template, style=style, markup=False)

    return Bar(
        text("{task.description}", "bold"),
        BarColumn(bar_width=24),
        text("{task.completed}/{task.total}"),
        text("{task.fields[losses]}", "cyan"),
        text("{task.fields[speed]}", "green"),
        text("{task.fields[kimg]}"),
        text("{task.fields[left]}", "magenta"),
        console=Console(file=stream),
        refresh_per_second=4,
        redirect_stdout=False,  # a redirected stdout would end up on stderr
    )


def _short(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
