"""Does the fast way reach what the plain one reaches? ganfast in bfloat16 against plain PyTorch in float32, three seeds each.

    python benches/precision.py              every run in turn, then the page
    python benches/precision.py dcgan        one recipe
    python benches/precision.py --page       the page alone, from docs/results/precision.csv

Both sides start from the same weights and see Fashion-MNIST's test split, mirrored at random. ganfast's side is everything that
it does at once: merged layers, fused kernels, its own optimizer and averages, bfloat16. The other side is the loop of
:mod:`benches.training.stock` with nothing switched on.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ganfast
from ganfast.benches import harness
from ganfast.benches.training.stock import Loop, Mode
from ganfast.data import open_dataset
from ganfast.engine.randomness import seeded
from ganfast.engine.samples import to_uint8
from ganfast.metrics.fashion import FRECHET_NAME, fashion_frechet, fashion_statistics
from ganfast.recipe import Recipe

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
TABLE, PAGE, PICTURE = RESULTS / "precision.csv", RESULTS / "precision.md", RESULTS / "pictures/precision.png"
SEEDS = (0, 1, 2)
SAMPLES, CHUNK = 5000, 250
PLAIN = Mode()  # float32, eager, contiguous
OURS, STOCK = "ganfast bfloat16", "PyTorch float32"
FIELDS = ("recipe", "provider", "seed", "step", "distance", "device", "threads", "torch", "commit", "date")


@dataclass(frozen=True)
class Experiment:
    """A recipe at a size that a CPU trains in minutes; its distance is taken at ``marks`` equal parts of ``steps``."""

    options: Mapping[str, Any]
    batch: int
    steps: int
    marks: int = 4

    def recipe(self, name: str, seed: int) -> Recipe:
        with seeded(torch.device("cpu"), seed):
            return ganfast.recipes.get(name, image_size=32, channels=1, **self.options)


EXPERIMENTS = {
    "dcgan": Experiment({"width": 32}, 64, 1200),
    "wgan-gp": Experiment({"architecture": "resnet", "width": 16, "critic_steps": 3, "beta1": 0.5, "lr": 5e-4}, 32, 600),
    "sngan": Experiment({"architecture": "resnet", "width": 16, "critic_steps": 2, "beta1": 0.5}, 32, 800),
}

Sample = Callable[[], NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--page", action="store_true", help="write the page from the table, without training")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in EXPERIMENTS:
            parser.error(f"no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}")
    if not arguments.page:
        images = open_dataset("fashion-mnist-10k", image_size=32).groups["real"]["real"]
        reference = fashion_statistics(np.asarray(images))
        for name in arguments.names or EXPERIMENTS:
            for seed in SEEDS:
                for provider, begin in ((OURS, ours), (STOCK, stock)):
                    for row in run(name, provider, seed, begin, np.asarray(images), reference):
                        harness.append(TABLE, [row], FIELDS)
                        print(f"{name}, {provider}, seed {seed}, step {row['step']}: {row['distance']:.4f}", flush=True)
    write_page(read())


def run(name: str, provider: str, seed: int, begin: Any, images: NDArray[np.uint8], reference: Any) -> Iterator[dict[str, Any]]:
    experiment = EXPERIMENTS[name]
    step, sample = begin(experiment, experiment.recipe(name, seed), images, seed)
    for mark in range(1, experiment.marks + 1):
        until = experiment.steps * mark // experiment.marks
        for _ in range(until - experiment.steps * (mark - 1) // experiment.marks):
            step()
        environment = harness.environment(torch.device("cpu"))
        yield {
            **{"recipe": name, "provider": provider, "seed": seed, "step": until},
            "distance": round(fashion_frechet(sample(), reference), 5),
            **{key: environment[key] for key in FIELDS if key in environment},
        }


def ours(experiment: Experiment, recipe: Recipe, images: NDArray[np.uint8], seed: int) -> tuple[Callable[[], Any], Sample]:
    trainer = ganfast.Trainer(recipe, images, batch=experiment.batch, precision="bf16", seed=seed, flip=True)
    return trainer.step, lambda: trainer.sample(SAMPLES, seed=seed)


def stock(
    experiment: Experiment, recipe: Recipe, images: NDArray[np.uint8], seed: int, mode: Mode = PLAIN
) -> tuple[Callable[[], Any], Sample]:
    torch.manual_seed(seed)
    steps = experiment.options.get("critic_steps", 1)
    loop = Loop(recipe, images, batch=experiment.batch, critic_steps=steps, mode=mode, device=torch.device("cpu"))

    @torch.no_grad()
    def sample() -> NDArray[np.uint8]:
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(SAMPLES, loop.latent.dim, generator=generator)
        if loop.latent.uniform:
            z = torch.rand(SAMPLES, loop.latent.dim, generator=generator) * 2 - 1
        average = loop.average.eval()
        return np.concatenate([to_uint8(average(part)) for part in z.split(CHUNK)])

    return loop.step, sample


# ---- the table, the picture and the page


def read() -> dict[tuple[str, str, int, int], dict[str, str]]:
    """The newest row of each recipe, provider, seed and step."""
    with TABLE.open(newline="") as file:
        return {(row["recipe"], row["provider"], int(row["seed"]), int(row["step"])): row for row in csv.DictReader(file)}


Rows = Mapping[tuple[str, str, int, int], Mapping[str, str]]


def distances(rows: Rows, name: str, provider: str, step: int) -> list[float]:
    return [float(rows[name, provider, seed, step]["distance"]) for seed in SEEDS if (name, provider, seed, step) in rows]


def steps_of(rows: Rows, name: str) -> list[int]:
    return sorted({step for recipe, _, _, step in rows if recipe == name})


def write_page(rows: Rows) -> None:
    lines = [PREFACE.strip(), "", *_HEAD]
    for name in dict.fromkeys(recipe for recipe, *_ in rows):
        for step in steps_of(rows, name)[-1:]:
            sides = [distances(rows, name, provider, step) for provider in (OURS, STOCK)]
            ranges = [f"{statistics.mean(side):.2f} ({min(side):.2f} to {max(side):.2f})" for side in sides]
            apart = abs(statistics.mean(sides[0]) - statistics.mean(sides[1]))
            spread = max(max(side) - min(side) for side in sides)
            verdict = "within" if apart <= spread else "**outside**"
            lines.append(f"| {name} | {step} | {ranges[0]} | {ranges[1]} | {apart:.2f} | {spread:.2f} | {verdict} |")
    machines = dict.fromkeys(f"{row['device']}, torch {row['torch']}, commit {row['commit']}" for row in rows.values())
    lines += ["", f"{'; '.join(machines)}.", ""]
    lines += [f"![distance over training](pictures/{PICTURE.name})"]
    PAGE.write_text("\n".join(lines) + "\n")
    draw(rows)


def draw(rows: Rows) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(recipe for recipe, *_ in rows))
    figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained", dpi=130)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        steps = steps_of(rows, name)
        for provider, colour in ((STOCK, "#8a8f98"), (OURS, "#2563eb")):
            sides = [distances(rows, name, provider, step) for step in steps]
            axes.fill_between(steps, [min(side) for side in sides], [max(side) for side in sides], color=colour, alpha=0.25, lw=0)
            axes.plot(steps, [statistics.mean(side) for side in sides], color=colour, marker="o", ms=3.5, label=provider)
        axes.set(title=name, xlabel="iteration")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(FRECHET_NAME)
    figure.axes[0].legend(frameon=False)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE)


PREFACE = f"""
# Does the fast way reach what the plain one reaches?

Each recipe is trained three times by ganfast, with all that makes it fast at once (bfloat16 with float32 weights, merged layers,
fused kernels, its own optimizer and averages), and three times by the plain PyTorch loop of `benches/training/stock.py` in
float32 with nothing switched on, from the same weights on the same images (Fashion-MNIST's test split at 32 x 32, mirrored at
random). {FRECHET_NAME} is the Frechet distance of {SAMPLES:,} samples of the averaged generator to the 10,000 images. *Apart* is
the distance of the means, *spread* the wider range of three seeds. Random numbers differ between the sides, so equal seeds are
not equal runs. `python benches/precision.py` repeats it. Captured CUDA graphs are not in it: nothing here has run on a GPU.
"""

_HEAD = (
    f"| recipe | iterations | {OURS}: mean (range) | {STOCK}: mean (range) | apart | spread | |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


if __name__ == "__main__":
    main()
