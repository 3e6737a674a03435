"""The figures of a bench's CSV as a picture: a bar a provider, or a line where the cases are points of a curve.

A case is a point of a curve where its name is "axis=number".
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ganfast.engine.draw import FAINT, INK, RULE, SKY, VERMILION
from ganfast.errors import InvalidData, InvalidValue, near

DRAWN = ("bench", "case", "provider", "median_us", "low_us", "high_us", "ratio", "device", "threads")  # the columns read here

_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind figures, so that no line crosses them

Row = Mapping[str, str]
Cases = dict[tuple[str, ...], dict[str, Row]]


def latest(rows: Iterable[Row]) -> Cases:
    """The last row of every provider, by device, bench and case."""
    cases: Cases = {}
    for row in rows:
        cases.setdefault((row["device"], row["bench"], row["case"]), {})[row["provider"]] = row
    return cases


def read(table: Path) -> Cases:
    """Raises InvalidData where ``table`` is not one of these benches."""
    try:
        with table.open(newline="") as file:
            reader = csv.DictReader(file)
            if not set(DRAWN) <= set(reader.fieldnames or ()):
                raise InvalidData(f"{table} is not a table of these benches: expected the columns {', '.join(DRAWN[:4])}, ...")
            return latest(reader)
    except OSError as error:
        raise InvalidData(f"cannot read {table}: {error.strerror}") from error


def of_benches(cases: Cases, names: Collection[str]) -> Cases:
    """Those of the benches with these names, or all without one. Raises InvalidValue for a name that is not there."""
    known = {bench for _, bench, _ in cases}
    for name in names:
        if name not in known:
            raise InvalidValue(f"the table has no bench called {name!r}{near(name, sorted(known))}")
    return {case: rows for case, rows in cases.items() if not names or case[1] in names}


def draw(cases: Cases) -> Figure:
    """Curves where every case is a point of one, bars otherwise. Raises InvalidValue where there is nothing to draw."""
    if not cases:
        raise InvalidValue("the table has no rows: nothing to draw")
    return draw_curves(cases) if all("=" in case for _, _, case in cases) else draw_bars(cases)


def draw_curves(cases: Cases) -> Figure:
    """A panel an axis: times against its values, all logarithmic; stock modes in one colour, ours in another, a dash a layout."""
    lines: dict[str, dict[str, list[tuple[float, float, str]]]] = {}
    for (device, bench, case), rows in cases.items():
        axis, value = case.split("=")
        for provider, row in rows.items():
            panel = lines.setdefault(f"{bench} against {axis}\n{device}, {row['threads']} threads", {})
            panel.setdefault(provider, []).append((float(value), float(row["median_us"]) / 1e3, row["ratio"]))
    figure = Figure(figsize=(4.2 * len(lines), 4), dpi=120, layout="constrained")
    for number, (title, panel) in enumerate(lines.items(), 1):
        axes: Any = figure.add_subplot(1, len(lines), number)
        for provider, points in panel.items():
            xs, ys, ratios = zip(*sorted(points), strict=True)
            colour, dash = VERMILION if ratios[0] else SKY, "--" if provider.endswith("channels-last") else "-"
            axes.plot(xs, ys, dash, color=colour, marker="o", markersize=3, label=provider)
        axes.set(xscale="log", yscale="log", xlabel=title.split("\n")[0].rsplit(" ", 1)[1], ylabel="ms")
        axes.set_xticks(xs, [f"{x:g}" for x in xs], size=8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_title(title, size=9)
        axes.grid(color=RULE)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_bars(cases: Cases) -> Figure:
    """A group of bars a case: medians, with quartiles as whiskers, in units of the fastest stock mode's median."""
    groups = [(key, _stock_first(providers.values())) for key, providers in cases.items()]
    bars = sum(len(rows) + 1 for _, rows in groups)
    figure = Figure(figsize=(9, 0.7 + 0.26 * bars), dpi=120, layout="constrained")
    axes: Any = figure.add_subplot()
    y = 0.0
    ticks: dict[float, str] = {}
    for (device, bench, case), rows in groups:
        unit = min(float(row["median_us"]) for row in rows if not row["ratio"])
        axes.text(0, y, f"{bench}, {case}", weight="bold", va="center", size=9)
        where = f"{device}, {rows[0]['threads']} threads"
        axes.text(1, y, where, va="center", ha="right", size=7, color=FAINT, transform=axes.get_yaxis_transform())
        for row in rows:
            y += 1
            median, low, high = (float(row[key]) / unit for key in ("median_us", "low_us", "high_us"))
            axes.barh(y, median, 0.75, color=VERMILION if row["ratio"] else SKY)
            axes.plot([low, high], [y, y], color=INK, linewidth=1)
            ratio = f"   {float(row['ratio']):.2f}x" if row["ratio"] else ""
            axes.text(max(high, median) + 0.02, y, f"{_time(float(row['median_us']))}{ratio}", va="center", size=8, bbox=_PAPER)
            ticks[y] = row["provider"]
        y += 1.3
    axes.set_yticks(list(ticks), list(ticks.values()), size=8)
    axes.set_ylim(y - 0.5, -0.8)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("time, the fastest stock mode = 1 (medians and quartiles)", size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)
    return figure


def _stock_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (bool(row["ratio"]), -float(row["median_us"])))


def _time(microseconds: float) -> str:
    return f"{microseconds / 1e3:.2f} ms" if microseconds >= 1e3 else f"{microseconds:.0f} µs"
