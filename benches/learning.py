"""Does it learn? Trains every experiment with its command, judges the result, and writes docs/results/learning.md.

    python benches/learning.py                  all of them, one after the other (about an hour on two CPU cores)
    python benches/learning.py dcgan-fashion    one or several by name
    python benches/learning.py --judge NAME     judge a run that is there already

Runs go to runs/learning/NAME, figures to docs/results/learning.json, pictures to docs/results/pictures.
"""

from __future__ import annotations

import argparse
import datetime
import glob
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.optimize import linear_sum_assignment

import ganfast
from ganfast import metrics
from ganfast.data import modes, open_dataset, sigma
from ganfast.engine import film
from ganfast.engine.runfolder import read_config, read_rows, sample_pictures
from ganfast.engine.samples import to_uint8
from ganfast.latent import Codes
from ganfast.metrics import fashion

HERE = Path(__file__).resolve().parent.parent
RUNS = Path("runs/learning")
RESULTS = HERE / "docs/results"
FIGURES = RESULTS / "learning.json"
PICTURES = RESULTS / "pictures"

Figures = dict[str, Any]
Judge = Callable[[Path], Figures]
Bound = tuple[str, str, float]  # figure, ">=" or "<=", bound


@dataclass(frozen=True)
class Experiment:
    """A command line after ``ganfast train``, what judges the run it leaves, what must hold (nothing where it is only shown)."""

    command: str
    judge: Judge
    must: tuple[Bound, ...] = ()


def toy(name: str) -> Judge:
    """Mode coverage of 10,000 samples: a mode counts, and quality is the share within three sigma, as ``mode_coverage`` says."""

    def judge(run: Path) -> Figures:
        samples = ganfast.Trainer.resume(run).sample(10_000, seed=1)
        found = metrics.mode_coverage(samples, modes(name), sigma(name))
        return {"modes": found["modes"], "of": len(modes(name)), "within 3 sigma": round(float(found["quality"]), 4)}

    return judge


def fashion_images(run: Path) -> Figures:
    """Classes, and Frechet distance of 5,000 samples to the 10,000 images at each checkpoint and before any training."""
    real = fashion.fashion_statistics(open_dataset("fashion-mnist-10k").groups["real"]["real"])
    config = read_config(run)
    fresh = ganfast.Trainer(config["recipe"], config["data"]["source"], **config["given"])
    untrained = fashion.fashion_frechet(fresh.sample(5_000, seed=1), real)
    course = {}
    for place in sorted((run / "checkpoints").glob("step-????????")):
        samples = ganfast.Trainer.resume(place).sample(5_000, seed=1)
        course[int(place.name.removeprefix("step-"))] = round(fashion.fashion_frechet(samples, real), 2)
    report = fashion.fashion_report(samples)
    last = list(course.values())[-1]
    return {
        "classes": report["classes"],
        "FD[fashion-cnn], untrained": round(untrained, 2),
        "FD[fashion-cnn] by iteration": course,
        "FD[fashion-cnn]": last,
        "times below untrained": round(untrained / last, 1),
        "falling": all(later < earlier for earlier, later in zip([untrained, *course.values()], course.values(), strict=False)),
    }


def asked_labels(run: Path) -> Figures:
    """How often the classifier agrees with the label that was asked for, 500 samples of each class."""
    labels = np.repeat(np.arange(10), 500)
    samples = ganfast.Trainer.resume(run).sample(len(labels), labels=labels, seed=1)
    found = fashion.logits(samples).argmax(1).cpu().numpy()
    agreement = {int(label): round(float((found[labels == label] == label).mean()), 3) for label in range(10)}
    return {"agreement": round(float((found == labels).mean()), 4), "agreement by class": agreement, **fashion_images(run)}


def code_to_class(run: Path) -> Figures:
    """The best one-to-one assignment of the categorical code to the classifier's classes, over 10,000 samples; chance is 0.1."""
    trainer = ganfast.Trainer.resume(run)
    latent = trainer.recipe.latent
    assert isinstance(latent, Codes)
    torch.manual_seed(1)
    inputs = latent.sample(10_000, trainer.device)
    category, _ = latent.split(inputs["z"])
    generator = trainer.networks["G_ema"]
    with torch.no_grad():
        samples = np.concatenate([to_uint8(generator(z)) for z in inputs["z"].split(500)])
    found = fashion.logits(samples).argmax(1).cpu().numpy()
    table = np.zeros((latent.categories, 10), np.int64)
    np.add.at(table, (category.cpu().numpy(), found), 1)
    rows, columns = linear_sum_assignment(-table)
    return {
        "best assignment": round(float(table[rows, columns].sum() / table.sum()), 4),
        "code to class": {int(row): int(column) for row, column in zip(rows, columns, strict=True)},
        **fashion_images(run),
    }


def cycle_error(run: Path) -> Figures:
    """Mean absolute cycle error in [-1, 1] units, over the first and the last twentieth of the log."""
    rows = read_rows(run)
    weight = read_config(run)["options"]["cycle"]
    part = max(1, len(rows) // 20)

    def mean(chosen: Sequence[Mapping[str, Any]], name: str) -> float:
        return round(float(np.mean([row[f"generators/{name}"] for row in chosen]) / weight), 4)

    figures: Figures = {}
    for side in "ab":
        first, last = mean(rows[:part], f"cycle_{side}"), mean(rows[-part:], f"cycle_{side}")
        figures |= {f"cycle error {side}, first": first, f"cycle error {side}, last": last}
    return {
        **figures,
        "cycle error, last over first": round(
            max(figures[f"cycle error {s}, last"] / figures[f"cycle error {s}, first"] for s in "ab"), 3
        ),
    }


def drawn(run: Path) -> Figures:
    """Nothing but the pictures."""
    return {}


LONGEST = 360  # seconds that a run may take
FILMS = ("dcgan-fashion", "wgan-gp-grid25", "gan-grid25")  # shown in the README

PREFACE = """
# What each recipe learns

Every run is one command with a fixed seed, on two CPU cores, and takes at most six minutes. `make learning` repeats all of
them, `python benches/learning.py NAME` one. This page is written by that script from `learning.json`; a figure that misses its
bound says so.

- *modes*, *within 3 sigma*: of 10,000 samples, a mode counts if it holds at least a tenth of its fair share of them within
  three sigma. Of perfect samples 98.9 % would lie within three sigma.
- *FD[fashion-cnn]*: Frechet distance of 5,000 samples to the 10,000 images of Fashion-MNIST's test split, on the 128 features
  of the classifier that ships with ganfast (92.0 % accurate on that split, trained on the other 60,000 images). It is no FID:
  only the 2015 Inception network makes one.
- *classes*: classes that hold at least 1 % of the samples, by that classifier.
"""

FASHION = "--data fashion-mnist-10k --seed 0 --keep 4"
GOOD = (("classes", ">=", 10), ("times below untrained", ">=", 5), ("falling", ">=", 1))
TOY = "--batch 128 --width 128 --latent-dim 2 --seed 0"
WGAN_GP = f"{TOY} --critic-steps 3 --penalty 0.1 --lr 0.002 --beta1 0.5 --decay linear"
EMOJI = next(iter(sorted(glob.glob("/usr/share/rubygems-integration/all/gems/gemojione-*/assets/png"))), "EMOJI_FOLDER")

EXPERIMENTS = {
    "wgan-gp-grid25": Experiment(
        f"wgan-gp --data toy:grid25 --steps 20000 {WGAN_GP}", toy("grid25"), (("modes", ">=", 25), ("within 3 sigma", ">=", 0.9))
    ),
    "gan-grid25": Experiment(f"gan --data toy:grid25 --steps 20000 {TOY}", toy("grid25")),
    "wgan-gp-ring8": Experiment(f"wgan-gp --data toy:ring8 --steps 6000 {WGAN_GP}", toy("ring8"), (("modes", ">=", 8),)),
    "gan-ring8": Experiment(f"gan --data toy:ring8 --steps 6000 {TOY}", toy("ring8")),
    "wgan-gp-swissroll": Experiment(f"wgan-gp --data toy:swissroll --steps 4000 {WGAN_GP}", drawn),
    "dcgan-fashion": Experiment(f"dcgan {FASHION} --steps 2800 --checkpoint-every 700", fashion_images, GOOD),
    "wgan-gp-fashion": Experiment(
        f"wgan-gp {FASHION} --architecture dcgan --width 32 --lr 0.0002 --beta1 0.5 --steps 1600 --checkpoint-every 400",
        fashion_images,
        GOOD,
    ),
    "sngan-fashion": Experiment(
        f"sngan {FASHION} --image-size 32 --architecture dcgan --width 32 --critic-steps 2 --steps 2800 --checkpoint-every 700",
        fashion_images,
        GOOD,
    ),
    "cgan-fashion": Experiment(
        f"cgan {FASHION} --latent-dim 32 --width 48 --steps 4200 --checkpoint-every 1050",
        asked_labels,
        (("agreement", ">=", 0.85), ("classes", ">=", 10)),
    ),
    "infogan-fashion": Experiment(f"infogan {FASHION} --steps 2400 --checkpoint-every 600", code_to_class),
    "cyclegan-edges": Experiment(
        f"cyclegan --data {RUNS}/data/edges --width 16 --batch 4 --steps 1500 --seed 0",
        cycle_error,
        (("cycle error, last over first", "<=", 0.5),),
    ),
    "dcgan-emoji": Experiment(f"dcgan --data {EMOJI} --width 32 --steps 800 --seed 0", drawn),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--judge", action="store_true", help="judge runs that are there, without training")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in EXPERIMENTS:
            parser.error(f"no experiment is called {name!r}; there are {', '.join(EXPERIMENTS)}")
    failed = []
    for name in arguments.names or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        run = RUNS / name
        if not arguments.judge:
            train(name, experiment, run)
        figures = experiment.judge(run)
        missed = [
            f"{figure} is {figures[figure]}, not {sign} {bound}"
            for figure, sign, bound in experiment.must
            if not holds(figures[figure], sign, bound)
        ]
        record(name, experiment, run, figures, missed)
        print(f"{name}: {figures}" + "".join(f"\n  MISSED: {miss}" for miss in missed), flush=True)
        failed += missed
    write_page()
    sys.exit(1 if failed else 0)


def train(name: str, experiment: Experiment, run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    if "data/edges" in experiment.command:
        edges(RUNS / "data/edges")
    subprocess.run([sys.executable, "-m", "ganfast", "train", *shlex.split(experiment.command), "--out", str(run)], check=True)


def edges(folder: Path) -> None:
    """An unpaired pair: 2,000 Fashion-MNIST images as they are in trainA, the edges of 2,000 others in trainB."""
    if folder.exists():
        return
    images = open_dataset("fashion-mnist-10k", image_size=32).groups["real"]["real"]
    for side, chosen in (("trainA", images[:2000]), ("trainB", images[2000:4000])):
        (folder / side).mkdir(parents=True)
        for number, array in enumerate(chosen):
            image = Image.fromarray(array[:, :, 0])
            if side == "trainB":
                image = image.filter(ImageFilter.FIND_EDGES)
            image.save(folder / side / f"{number:04d}.png")


def holds(value: float, sign: str, bound: float) -> bool:
    return value >= bound if sign == ">=" else value <= bound


def record(name: str, experiment: Experiment, run: Path, figures: Figures, missed: list[str]) -> None:
    """Write one experiment's figures, command and circumstances, and its pictures."""
    rows = read_rows(run)
    seconds = round(rows[-1]["seconds"])
    if seconds > LONGEST:
        missed.append(f"it took {seconds} s, not <= {LONGEST}")
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    known[name] = {
        "command": f"ganfast train {experiment.command} --out {run}",
        "figures": figures,
        "must": [list(bound) for bound in experiment.must],
        "missed": missed,
        "seconds": seconds,
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "device": f"{platform.machine()} CPU, {read_config(run).get('threads', 'default')} threads",
        "torch": torch.__version__,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps({key: known[key] for key in EXPERIMENTS if key in known}, indent=2) + "\n")
    PICTURES.mkdir(exist_ok=True)
    last = film.load(sample_pictures(run)[-1])
    last.thumbnail((560, 560), Image.Resampling.LANCZOS)
    last.save(PICTURES / f"{name}.webp", quality=80, method=6)
    if name in FILMS:
        film.animation(sample_pictures(run), PICTURES / f"{name}-film.webp", budget=600_000)


def write_page() -> None:
    """docs/results/learning.md from the figures."""
    known = json.loads(FIGURES.read_text())
    lines = [PREFACE.strip(), ""]
    for name, row in known.items():
        lines += [f"## {name}", "", f"    {row['command']}", ""]
        for figure, value in row["figures"].items():
            shown = ", ".join(f"{key}: {each}" for key, each in value.items()) if isinstance(value, dict) else value
            bound = next((f" (must be {sign} {limit:g})" for wanted, sign, limit in row["must"] if wanted == figure), "")
            lines.append(f"- {figure}: {shown}{bound}")
        lines += [f"- **missed: {miss}**" for miss in row["missed"]]
        lines += [f"- {row['seconds']} s on {row['device']}, torch {row['torch']}, {row['date']}, commit {row['commit']}", ""]
        lines += [f"![{name}](pictures/{name}.webp)", ""]
    (RESULTS / "learning.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
