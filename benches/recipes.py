"""Images per second of every recipe as the engine runs it, per batch size: rows of a CSV with device, versions and commit.

    python benches/recipes.py --device cuda --batch 64 256 --out recipes.csv

It compares nothing: the comparison with stock PyTorch is a bench of its own.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

import ganfast
from ganfast import recipes
from ganfast.data import Dataset

FIELDS = (
    "recipe",
    "image_size",
    "batch",
    "precision",
    "images_per_second",
    "spread",
    "ms_per_iteration",
    "device",
    "torch",
    "commit",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured per row, after a warm-up")
    parser.add_argument("--names", nargs="+", default=recipes.names())
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with arguments.out.open("w", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        table.writeheader()
        for name in arguments.names:
            for batch in arguments.batch:
                options = {"batch": batch, "device": arguments.device, "precision": arguments.precision}
                trainer = ganfast.Trainer(name, noise(name, arguments.image_size), **options)
                row = {
                    "recipe": name,
                    "image_size": arguments.image_size,
                    "batch": batch,
                    "torch": torch.__version__,
                    "commit": commit,
                }
                row |= measure(trainer, arguments.seconds)
                table.writerow(row)
                file.flush()
                print(row, flush=True)


def measure(trainer: ganfast.Trainer, seconds: float) -> dict[str, object]:
    """Medians over five blocks of whole iterations, the device idle at both ends of each."""
    for _ in range(3):
        trainer.step()
    began, count = clock(trainer), 0
    while clock(trainer) - began < seconds / 5:
        trainer.step()
        count += 1
    times = []
    for _ in range(5):
        began = clock(trainer)
        for _ in range(count):
            trainer.step()
        times.append((clock(trainer) - began) / count)
    images = trainer.images / trainer.steps
    name = (
        torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    return {
        "precision": str(trainer.precision).removeprefix("torch."),
        "images_per_second": round(images / statistics.median(times), 1),
        "spread": round((max(times) - min(times)) / statistics.median(times), 3),
        "ms_per_iteration": round(statistics.median(times) * 1000, 3),
        "device": name,
    }


def clock(trainer: ganfast.Trainer) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()


def noise(name: str, size: int) -> Dataset:
    """1,024 random colour images: speed does not depend on what is in them, as long as it is not constant."""
    images = np.random.default_rng(0).integers(0, 256, (1024, size, size, 3), dtype=np.uint8)
    if name == "cyclegan":
        return Dataset("pair", {"a": {"a": images[:512]}, "b": {"b": images[512:]}})
    return Dataset("noise", {"real": {"real": images, "labels": np.arange(1024) % 10}})


if __name__ == "__main__":
    main()
