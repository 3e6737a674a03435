"""How long until pictures are that good? Wall-clock to a fixed Frechet distance on Fashion-MNIST, one model trained four ways.

    python benches/quality.py     on two idle CPU cores; writes docs/results/quality.{csv,md} and a picture

DCGAN at 32 x 32 by ganfast in bfloat16, by the two fast modes of the loop of :mod:`benches.training.stock`, and by that loop as
it is usually written. They take turns, a twelfth of the run at a time, from the same weights; clocks stand still while distances
are taken.
"""

from __future__ import annotations

import csv
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganfast.benches import harness
from ganfast.benches.precision import PLAIN, SAMPLES, Experiment, ours, stock
from ganfast.benches.training.stock import Mode
from ganfast.data import open_dataset
from ganfast.metrics.fashion import FRECHET_NAME, fashion_frechet, fashion_statistics

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
TABLE, PAGE, PICTURE = RESULTS / "quality.csv", RESULTS / "quality.md", RESULTS / "pictures/quality.png"
EXPERIMENT = Experiment({"width": 64}, 64, 1200, marks=12)
TARGET = 4.0
FAST = [Mode(torch.bfloat16, channels_last=True, compiled=way) for way in ("", "default")]
PROVIDERS = {
    "ganfast bfloat16": ours,
    **{str(mode): functools.partial(stock, mode=mode) for mode in FAST},
    f"{PLAIN}, as usual": functools.partial(stock, mode=PLAIN),
}
FIELDS = ("provider", "step", "seconds", "distance", "device", "threads", "torch", "commit", "date")

Row = Mapping[str, Any]


def main() -> None:
    images = np.asarray(open_dataset("fashion-mnist-10k", image_size=32).groups["real"]["real"])
    reference = fashion_statistics(images)
    runs = {name: begin(EXPERIMENT, EXPERIMENT.recipe("dcgan", 0), images, 0) for name, begin in PROVIDERS.items()}
    for step, _ in runs.values():  # what is compiled and chosen once is not counted; the first steps train like all others
        step(), step()
    seconds, rows = dict.fromkeys(runs, 0.0), []
    environment = harness.environment(torch.device("cpu"))
    for mark in range(1, EXPERIMENT.marks + 1):
        for name, (step, sample) in runs.items():
            began = time.perf_counter()
            for _ in range(EXPERIMENT.steps // EXPERIMENT.marks):
                step()
            seconds[name] += time.perf_counter() - began
            rows.append(
                {
                    **{"provider": name, "step": mark * EXPERIMENT.steps // EXPERIMENT.marks, "seconds": round(seconds[name], 1)},
                    "distance": round(fashion_frechet(sample(), reference), 4),
                    **{key: environment[key] for key in FIELDS if key in environment},
                }
            )
            print(f"{name}: iteration {rows[-1]['step']}, {seconds[name]:.1f} s, {rows[-1]['distance']}", flush=True)
    with TABLE.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    write_page(rows)


def reached(rows: Sequence[Row], target: float) -> float | None:
    """Seconds until the distance is ``target``, between marks along a straight line; None where it never is."""
    before: Row | None = None
    for row in rows:
        if row["distance"] <= target:
            if before is None:
                return float(row["seconds"])
            share = (before["distance"] - target) / (before["distance"] - row["distance"])
            return float(before["seconds"] + share * (row["seconds"] - before["seconds"]))
        before = row
    return None


def write_page(rows: Sequence[Row]) -> None:
    of = {name: [row for row in rows if row["provider"] == name] for name in PROVIDERS}
    times = {name: reached(mine, TARGET) for name, mine in of.items()}
    first = next(iter(times.values()))
    lines = [
        PREFACE.strip(),
        "",
        f"| | seconds to {TARGET:g} | times ganfast's | seconds of {EXPERIMENT.steps} iterations | distance then |",
    ]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, mine in of.items():
        mine_reached = times[name]
        shown = "never" if mine_reached is None else f"{mine_reached:.0f}"
        ratio = "" if mine_reached is None or not first else f"{mine_reached / first:.2f}"
        lines.append(f"| {name} | {shown} | {ratio} | {mine[-1]['seconds']:.0f} | {mine[-1]['distance']:.2f} |")
    last = rows[-1]
    lines += ["", f"{last['device']}, {last['threads']} threads, torch {last['torch']}, {last['date']}, commit {last['commit']}."]
    lines += ["", f"![distance over time](pictures/{PICTURE.name})"]
    PAGE.write_text("\n".join(lines) + "\n")
    draw(of)


def draw(of: Mapping[str, Sequence[Row]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=130)
    axes = figure.subplots()
    for (name, rows), colour in zip(of.items(), ("#2563eb", "#d97706", "#f2b56b", "#8a8f98"), strict=True):
        axes.plot(
            [row["seconds"] for row in rows], [row["distance"] for row in rows], color=colour, marker="o", ms=3.5, label=name
        )
    axes.axhline(TARGET, color="black", lw=0.8, ls=":")
    axes.set(xlabel="seconds of training", ylabel=FRECHET_NAME, xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)


PREFACE = f"""
# How long until the pictures are that good?

DCGAN (width 64, batch 64) on Fashion-MNIST's test split at 32 x 32, mirrored at random, four ways: by ganfast in bfloat16; by
a plain PyTorch loop of the same model in its two fast modes; by that loop as it is usually written, eager and in float32. All
start from the same weights and take turns, a twelfth of the run at a time. {FRECHET_NAME} is that of {SAMPLES:,} samples of the
averaged generator; the clock stands still meanwhile, and what is compiled or measured once is not counted. One seed: the page
[on precision](precision.md) says how far seeds spread. `python benches/quality.py` repeats it.
"""


if __name__ == "__main__":
    main()
