"""``ganfast represent``: what a critic has learned of images, as a table, and as JSON and a picture in a folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ganfast.errors import InvalidValue, NotWritable, in_memory

if TYPE_CHECKING:
    from ganfast.representation.protocol import Result

FIGURES, PICTURE = "representation.json", "representation.png"


def _whole_numbers(context: click.Context, parameter: click.Parameter, given: str | None) -> list[int] | None:
    if given is None:
        return None
    words = given.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise InvalidValue(f"--counts: expected whole numbers with commas between them, got {given!r}")
    return [int(word) for word in words]


@click.command("represent", short_help="See what a critic has learned: classes by its features.")
@click.argument("run")
@click.option("--data", required=True, help="labelled images to fit, and to test unless there is --test-data; as for train")
@click.option("--test-data", help="labelled images to test; fashion-mnist-10k for fashion-mnist  [default: a fifth of --data]")
@click.option("--train", type=click.IntRange(min=2), help="images to fit and to choose C by  [default: all that are not tested]")
@click.option("--test", type=click.IntRange(min=1), help="images to test  [default: all of --test-data, or a fifth of --data]")
@click.option(
    "--counts", callback=_whole_numbers, help="labelled images to fit, beside all  [default: 100,300,1000,3000 as there are]"
)
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="draws of each count")
@click.option(
    "--centroids", default=800, show_default=True, type=click.IntRange(min=2), help="of k-means; makes 4 times as many features"
)
@click.option("--network", help="the critic, for recipes that have several")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="another seed makes other splits and draws"
)
@click.option("--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1")
@click.option("--out", help=f"a folder for {FIGURES} and {PICTURE}")
def command(run: str, out: str | None, **options: Any) -> None:
    """Fit a linear SVM to what the critic of RUN (a run's folder, or a checkpoint's) makes of labelled images.

    Beside it the critic before training, k-means features and pixels (Radford et al. 2016, section 5). Without --test-data the
    critic may have seen the test images in training, without their labels; the table then says so.
    """
    from ganfast.data.progress import tracked
    from ganfast.representation.protocol import represent

    if out is not None:
        _check_writable(Path(out))
    with in_memory("with these features: make --train, --test or --centroids smaller"):
        result = represent(run, watch=tracked, **options)
    if out is not None:
        _write(Path(out), result)
    _show(result)
    if out is not None:
        click.echo(f"everything is in {out}")


def _check_writable(folder: Path) -> None:
    """Before anything slow is done, and with nothing made yet. Raises NotWritable."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotWritable(f"cannot write {folder}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise NotWritable(f"cannot write {folder}: permission denied in {there}")


def _write(folder: Path, result: Result) -> None:
    from ganfast.files import write_atomically
    from ganfast.representation.picture import draw

    told = result.manifest
    title = f"A linear classifier on features of a critic: {told['recipe']}, iteration {told['step']:,}"
    below = f"{told['images']['test']:,} test images of {told['test_data']['name']}; bars: standard deviation over draws"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(f"cannot make {folder}: {error.strerror}") from error
    write_atomically(folder / FIGURES, (json.dumps(result.json, indent=2, allow_nan=False) + "\n").encode())
    write_atomically(folder / PICTURE, draw(result.rows, title, below))


def _show(result: Result) -> None:
    """A line for each representation, a column for each number of labelled images."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    counts = list(dict.fromkeys(row.count for row in result.rows))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test accuracy, %")
    for heading in ("features", *(f"{count:,} labels" for count in counts), "C"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(row.representation for row in result.rows):
        line = [row for row in result.rows if row.representation == name]
        cells = [f"{100 * r.accuracy:.1f}" + ("" if r.deviation is None else f" ± {100 * r.deviation:.1f}") for r in line]
        table.add_row(name, f"{line[0].dims:,}", *cells, f"{line[-1].cost:.3g}")
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)
    told, images = result.manifest, result.manifest["images"]
    click.echo(
        f"{images['test']:,} test images of {told['test_data']['name']}; C, here that of all labels, by {images['validation']:,} "
        f"held-out images; critic {told['network']} of {told['recipe']}, iteration {told['step']}"
    )
    if told["critic_saw_test_images"]:
        click.echo("the critic was trained on the test images too, without their labels: see --test-data")
