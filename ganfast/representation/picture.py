"""Accuracy against the number of labelled images, a line for each representation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ganfast.engine.draw import BLUE, FAINT, GREEN, INK, ORANGE, RULE, VERMILION

if TYPE_CHECKING:
    from ganfast.representation.protocol import Row

_COLOURS = {"critic": VERMILION, "untrained critic": ORANGE, "k-means": BLUE, "pixels": GREEN}
_APART = 0.05  # of the height, between the names beside the lines' ends
_ASIDE = 1.035  # between the points of two lines at one count, so that their bars can be told apart


def draw(rows: Sequence[Row], title: str, below: str) -> bytes:
    """A PNG, with a title and a line below it.

    Bars are standard deviations over draws of the labelled images; beside its end each line has its name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.8), dpi=120, facecolor="white")
    axes: Any = figure.add_axes((0.085, 0.125, 0.66, 0.74))
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(row.representation, []).append(row)
    counts = sorted({row.count for row in rows})
    for number, (name, line) in enumerate(lines.items()):
        aside = _ASIDE ** (number - (len(lines) - 1) / 2)
        axes.errorbar(
            [row.count * aside for row in line],
            [100 * row.accuracy for row in line],
            [100 * (row.deviation or 0) for row in line],
            color=_COLOURS[name],
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            elinewidth=1,
            capsize=2.5,
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    ends = sorted(((100 * line[-1].accuracy, name, line[-1]) for name, line in lines.items()), key=lambda end: end[0])
    level = low
    for height, name, row in ends:
        level = max(height, level + _APART * (high - low))
        label = f"{name}  {100 * row.accuracy:.1f} %"
        axes.annotate(
            label,
            (counts[-1], level),
            (12, 0),
            textcoords="offset points",
            va="center",
            size=9.5,
            color=_COLOURS[name],
            weight="bold",
        )
    axes.set_xlabel("labelled images", color=FAINT)
    axes.set_ylabel("test accuracy, %", color=FAINT)
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, length=0, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    figure.text(0.085, 0.945, title, size=12, weight="bold", color=INK)
    figure.text(0.085, 0.905, below, size=9, color=FAINT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
