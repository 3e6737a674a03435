"""``ganfast latent`` and ``ganfast nearest``: pictures of what a generator has learned, and of what it may know by heart."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InvalidData, InvalidValue, NotWritable, in_memory
from ganfast.files import write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1"
)
_OUT = click.option("--out", required=True, help="the picture, a .png")


@click.command(short_help="Walk through a run's latent space, as a picture.")
@click.argument("run")
@_OUT
@click.option("--n", default=64, show_default=True, type=click.IntRange(min=1), help="numbered samples to choose from")
@click.option("--interpolate", type=click.IntRange(min=2), metavar="STEPS", help="instead, ways from one sample to another")
@click.option("--pairs", default=8, show_default=True, type=click.IntRange(min=1), help="how many such ways")
@click.option("--kind", default="spherical", show_default=True, type=click.Choice(["spherical", "linear"]), help="of way")
@click.option(
    "--arithmetic", nargs=3, metavar="A B C", help="instead, A - B + C of means of samples by number: 1,5,7 3,9,12 4,20,33"
)
@click.option("--labels", type=int, help="the class to make, for label-conditional recipes")
@click.option("--seed", type=int, default=0, show_default=True, help="another seed makes other samples")
@_DEVICE
def latent(
    run: str,
    out: str,
    n: int,
    interpolate: int | None,
    pairs: int,
    kind: Any,
    arithmetic: tuple[str, str, str] | None,
    labels: int | None,
    seed: int,
    device: str,
) -> None:
    """Walk through the latent space of a RUN folder's newest checkpoint, or of one checkpoint's folder.

    Without --interpolate or --arithmetic: numbered samples, of which --arithmetic takes numbers.
    """
    from ganfast import latent_space
    from ganfast.api import Trainer
    from ganfast.engine import sheets

    if interpolate is not None and arithmetic is not None:
        raise InvalidValue("expected --interpolate or --arithmetic, got both")
    terms = [_numbers(words) for words in arithmetic or ()]
    place = _picture_file(out)
    with in_memory("while making samples: make --n, --pairs or --interpolate smaller"):
        trainer = Trainer.resume(run, device=device, training=False)
        if interpolate is not None:
            way = latent_space.interpolation(trainer, pairs=pairs, steps=interpolate, kind=kind, seed=seed, labels=labels)
            picture = sheets.ways(way)
            said = f"{pairs} {kind} ways of {interpolate} steps"
        elif terms:
            found = latent_space.arithmetic(trainer, *terms, seed=seed, labels=labels)
            signs, names = ("", "-", "+"), ("a", "b", "c")
            picture = sheets.equation(list(zip(signs, names, found.examples, found.means, strict=True)), found.results)
            said = "a - b + c, and eight results near it"
        else:
            images = trainer.generate(latent_space.latents(trainer, range(n), seed=seed, labels=labels))
            picture = sheets.numbered(images)
            said = f"{n} numbered samples of seed {seed}"
    _save(picture, place)
    click.echo(f"{said}, of {trainer.recipe.name}, iteration {trainer.steps}, in {out}")


@click.command(short_help="Find the training images nearest to samples, as a picture.")
@click.argument("what", metavar="RUN_OR_IMAGES")
@_OUT
@click.option("--against", help="the training images: all that --data takes  [default: the run's own data]")
@click.option("--n", type=click.IntRange(min=1), help="samples of a run, images of a folder  [default: 256 of a run, else all]")
@click.option(
    "--rows", default=8, show_default=True, type=click.IntRange(min=1), help="samples to show, those nearest to an image"
)
@click.option("--k", default=6, show_default=True, type=click.IntRange(min=1), help="neighbours to show of each")
@click.option("--network", help="compare features of inception-2015, efficientnet-lite0 or fashion-cnn, not pixels")
@click.option("--seed", type=int, default=0, show_default=True, help="another seed makes other samples")
@_DEVICE
def nearest(
    what: str, out: str, against: str | None, n: int | None, rows: int, k: int, network: str | None, seed: int, device: str
) -> None:
    """Find the training images nearest to samples of a run or checkpoint, or to images, to see whether they were copied.

    The picture shows the samples that come nearest to a training image.
    """
    from ganfast.engine import sheets
    from ganfast.engine.settings import resolve_device
    from ganfast.metrics import networks
    from ganfast.metrics.nearest import nearest_neighbours

    place = _picture_file(out)
    made_by = None if network is None else networks.network(network, device=resolve_device(device))
    with in_memory("while comparing: make --n smaller"):
        samples, training = _sides(what, against, n, seed, device)
        sides: list[Any] = [samples, training] if made_by is None else [made_by(side).features for side in (samples, training)]
        if k >= len(training):
            raise InvalidValue(f"--k: expected less than the {len(training)} training images, got {k}")
        found = nearest_neighbours(*sides, k=k)
        # how far a training image is from its own nearest other one: what distances mean here
        some = np.linspace(0, len(training) - 1, min(len(training), 256)).astype(int)
        usual = nearest_neighbours(sides[1][some], sides[1], k=2).distances[:, 1].median().item()
        chosen = found.distances[:, 0].argsort(stable=True)[:rows].tolist()
        unit = "pixels in [0, 1]" if network is None else f"features of {network}"
        note = f"Distances of {unit}. A training image's nearest other one is {usual:.3g} away (median)."
        _save(sheets.neighbours(samples, training, found, chosen, note=note), place)
    copies = int((found.distances[:, 0] == 0).sum())
    closest, median = found.distances[:, 0].min().item(), found.distances[:, 0].median().item()
    click.echo(
        f"{copies} of {len(samples)} are copies; the nearest training image is {closest:.3g} away at least and {median:.3g} in "
        f"the median, a training image's nearest other one {usual:.3g}; picture in {out}"
    )


COMMANDS = (latent, nearest)


def _sides(what: str, against: str | None, n: int | None, seed: int, device: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Samples and training images. Raises InvalidValue or InvalidData for points, pairs, or sizes that differ."""
    from ganfast.data import open_dataset
    from ganfast.evaluation.compared import of_dataset, run_at

    look: dict[str, Any] = {}
    trainer = run_at(what, device)
    if trainer is None:
        chosen = of_dataset(open_dataset(what), n, seed=seed)
        samples = np.concatenate([np.asarray(chunk) for chunk in chosen.chunks()])
        look = {"image_size": samples.shape[1], "channels": samples.shape[3]}
    else:
        if not trainer.data.image_size:
            raise InvalidValue(f"the run in {trainer.out} makes points, and these are pictures")
        samples = trainer.sample(256 if n is None else n, seed=seed)
        described = trainer.config["data"]
        look = {"image_size": trainer.data.image_size, "channels": trainer.data.channels, **described["options"]}
        against = described["source"] if against is None else against
    if against is None:
        raise InvalidValue("expected --against, the training images")
    training = np.concatenate([np.asarray(chunk) for chunk in of_dataset(open_dataset(against, **look)).chunks()])
    if samples.shape[1:] != training.shape[1:]:
        raise InvalidData(f"samples are {samples.shape[1:]}, and {against} has images of {training.shape[1:]}")
    return samples, training


def _numbers(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise InvalidValue(f"--arithmetic: expected numbers of samples such as 1,5,7, got {words!r}") from None


def _picture_file(out: str) -> Path:
    """Raises InvalidValue or NotWritable where no picture can be written, before anything slow is done."""
    from ganfast.engine import export

    if Path(out).suffix != ".png":
        raise InvalidValue(f"{out}: expected a name ending in .png")
    export.writer(Path(out))
    return Path(out)


def _save(picture: Image, place: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(f"cannot make the folder {place.parent}: {error.strerror}") from error
    write_atomically(place, buffer.getvalue())
