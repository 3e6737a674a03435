"""``ganfast eval``: scores of a run, a checkpoint, images or features against real images, as a table and as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganfast.errors import NotWritable, in_memory

if TYPE_CHECKING:
    from ganfast.evaluation.evaluate import Scores


@click.command("eval", short_help="Score samples or images against real ones.")
@click.argument("what", metavar="RUN_OR_FOLDER")
@click.option(
    "--against", help="the real images: all that --data takes, or an npz of mu and sigma  [default: the run's own data]"
)
@click.option("--metrics", default="fid", show_default=True, help="fid, fid-infinity, kid, prdc, is; several with commas")
@click.option("--network", help="whose features: inception-2015, efficientnet-lite0, fashion-cnn  [default: inception-2015]")
@click.option("--preset", help="how images become its input: tf-compat, pytorch-fid, clean, torchmetrics  [default: tf-compat]")
@click.option("--protocol", help="sample counts, splits and preset by name, such as sngan-10k5k")
@click.option("--weights", help="a file with the network's weights, where they are not the published ones")
@click.option("--n", type=click.IntRange(min=2), help="samples of a run, images of a folder  [default: 10000 of a run, else all]")
@click.option("--n-real", type=click.IntRange(min=2), help="real images, drawn by the seed  [default: all]")
@click.option("--splits", type=click.IntRange(min=1), help="of the inception score  [default: 10]")
@click.option("--subsets", type=click.IntRange(min=1), help="of the kernel distance  [default: 100]")
@click.option("--subset-size", type=click.IntRange(min=2), help="of the kernel distance  [default: 1000]")
@click.option("--k", type=click.IntRange(min=1), help="neighbours of precision, recall, density and coverage  [default: 5]")
@click.option("--image-size", type=click.IntRange(min=1), help="pixels a side that images are resized to  [default: the run's]")
@click.option("--channels", type=int, help="1 grey, 3 colour; the run's, or the images' own, unless given")
@click.option("--filter", help="resampling filter of --image-size  [default: the run's, else lanczos]")
@click.option("--batch", default=256, show_default=True, type=click.IntRange(min=1), help="images read at a time")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**64 - 1), help="which samples, and which of the images"
)
@click.option("--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1")
@click.option("--out", help="a JSON file for the scores and how they were taken")
@click.option("--save-statistics", help="an npz for mean and covariance of RUN_OR_FOLDER, as pytorch-fid and clean-fid have it")
def command(what: str, out: str | None, **options: Any) -> None:
    """Score what RUN_OR_FOLDER holds (a run, one of its checkpoints, images, or an npz of features) against real images.

    Only the Inception of 2015 with its published weights makes a FID; with any other network a score is named after it.
    """
    from ganfast.data.progress import tracked
    from ganfast.evaluation.evaluate import SAMPLES, evaluate
    from ganfast.evaluation.measures import Choices

    given = {name: value for name, value in options.items() if value is not None}
    for place in (out, given.get("save_statistics")):
        _check_writable(place)
    chosen = {name: given.pop(name) for name in ("splits", "subsets", "subset_size", "k") if name in given}
    with in_memory(f"with {given.get('n', SAMPLES)} samples: make --n or --batch smaller"):
        scores = evaluate(what, choices=Choices(**chosen) if chosen else None, watch=tracked, **given)
    if out is not None:
        from ganfast.files import write_atomically

        text = json.dumps({"scores": scores.values, "manifest": scores.manifest}, indent=2, allow_nan=False) + "\n"
        write_atomically(Path(out), text.encode())
    _show(scores)
    if "save_statistics" in given:
        click.echo(f"mean and covariance are in {given['save_statistics']}")


def _check_writable(place: str | None) -> None:
    """Before anything slow is done. Raises NotWritable."""
    if place is None:
        return
    folder = Path(place).absolute().parent
    if not folder.is_dir():
        raise NotWritable(f"cannot write {place}: there is no folder {folder}")
    if Path(place).is_dir():
        raise NotWritable(f"cannot write {place}: it is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotWritable(f"cannot write to {folder}: permission denied")


def _show(scores: Scores) -> None:
    """The scores on standard output, each with its deviation over splits or subsets where it has one, and what was compared."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not scores.values:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in scores.values.items():
        if not name.endswith(" std"):
            spread = scores.values.get(f"{name} std")
            table.add_row(Text(name), f"{value:.6g}" + ("" if spread is None else f" ± {spread:.2g}"))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
    sides = [scores.manifest[side] for side in ("fake", "real") if scores.manifest[side]]
    click.echo(" against ".join(_called(side) for side in sides))


def _called(side: Mapping[str, Any]) -> str:
    if side["n"] is None:
        return str(side["name"])
    return f"{side['n']} " + (f"samples of {side['name']}, iteration {side['step']}," if "step" in side else f"of {side['name']}")
