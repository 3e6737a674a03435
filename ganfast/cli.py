"""The ``ganfast`` command. Options are made from the engine's settings and from each recipe's own signature."""

from __future__ import annotations

import dataclasses
import sys
import typing
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from ganfast import explore
from ganfast.errors import Error, InvalidValue, NonFinite, in_memory, near
from ganfast.evaluation.command import command as evaluation_command
from ganfast.representation.command import command as representation_command

Group = tuple[str, list[click.Parameter]]


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings."""

    def __init__(self, name: str, groups: list[Group], callback: Callable[..., Any], help: str) -> None:
        super().__init__(name, params=[p for _, parameters in groups for p in parameters], callback=callback, help=help)
        self.groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, parameters in self.groups:
            records = [record for record in (p.get_help_record(ctx) for p in parameters) if record]
            with formatter.section(title):
                formatter.write_dl(records)


class HelpfulGroup(click.Group):
    """A group that prints its help where nothing was asked of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])


class TrainCommands(HelpfulGroup):
    """One command per recipe, built when it is asked for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            raise InvalidValue(f"expected a recipe before {args[0]}: ganfast train RECIPE --data X --out DIR")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        from ganfast import recipes

        return recipes.names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        return train_command(name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        return args[0], self.get_command(ctx, args[0]), args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from ganfast import recipes

        with formatter.section("Recipes"):
            formatter.write_dl([(name, recipes.summary(name)) for name in recipes.names()])


class Commands(HelpfulGroup):
    """The top level: a command that does not exist suggests the near one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            raise InvalidValue(f"no command is called {args[0]!r}{near(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="ganfast", prog_name="ganfast", message="%(prog)s %(version)s")
def ganfast() -> None:
    """Train GANs fast. Start with: ganfast train dcgan --data fashion-mnist-10k --out runs/first"""


@ganfast.group(cls=TrainCommands, subcommand_metavar="RECIPE [OPTIONS]", short_help="Train a recipe on images or points.")
def train() -> None:
    """Train a recipe on images or points and leave a run folder with pictures, logs, checkpoints and a report.

    `ganfast train RECIPE --help` lists that recipe's options.
    """


def train_command(name: str) -> click.Command:
    """``ganfast train NAME`` with one typed option per field of the recipe, the data and the engine."""
    from ganfast import recipes
    from ganfast.api import DATA_OPTIONS
    from ganfast.engine.settings import Settings

    own = [option for option in recipes.options(name).values() if option.name not in (*DATA_OPTIONS, "classes")]
    hints = typing.get_type_hints(Settings, include_extras=True)
    run: list[click.Parameter] = [
        click.Option(
            ["--data"],
            required=True,
            help="fashion-mnist-10k, fashion-mnist, toy:ring8, toy:grid25, toy:swissroll, "
            "or a path: folder, zip, npz, npy, IDX, CIFAR",
        ),
        click.Option(["--out"], required=True, help="the run's folder; must not hold a run yet, unless --resume"),
        click.Option(
            ["--steps"],
            type=int,
            help="iterations to train to, counted from the start of the run  [default: 2000; with --resume the run's own]",
        ),
        click.Option(["--resume"], is_flag=True, help="go on from the newest good checkpoint in --out"),
    ]
    data: list[click.Parameter] = [
        click.Option(["--image-size"], type=int, help="pixels a side; the data's own unless given"),
        click.Option(["--channels"], type=int, help="1 grey, 3 colour; the data's own unless given"),
        click.Option(
            ["--filter"],
            help="resampling filter: nearest, box, bilinear, hamming, bicubic, lanczos",
            default="lanczos",
            show_default=True,
        ),
    ]
    if "classes" in recipes.options(name):
        data.append(click.Option(["--classes"], type=int, help="number of labels; the data's own unless given"))
    recipe: list[click.Parameter] = [_option(o.name, o.type, o.choices, o.default, o.help) for o in own]
    engine: list[click.Parameter] = []
    for field in dataclasses.fields(Settings):
        hint, text = hints[field.name].__args__[0], hints[field.name].__metadata__[0]
        choices = typing.get_args(hint)
        default = recipes.defaults(name).get(field.name, field.default)
        engine.append(_option(field.name, str if choices else hint, choices, default, text))

    def callback(**values: Any) -> None:
        context = click.get_current_context()
        given = {
            key: value
            for key, value in values.items()
            if context.get_parameter_source(key) is click.core.ParameterSource.COMMANDLINE
        }
        if values["resume"]:
            needed = f"for the run in {values['out']}: go on where there is more, or on another --device"
        else:
            width = values["width"] or "as usual"
            needed = f"with batch {values['batch']} and width {width}: make --batch or --width smaller"
        with in_memory(needed):
            _train(name, values["data"], values["out"], values["steps"], values["resume"], given)

    groups = [("Run", run), ("Data", data), (f"Recipe {name}", recipe), ("Engine", engine)]
    page = sys.modules[f"ganfast.recipes.{name.replace('-', '_')}"].__doc__ or ""
    paragraphs = "\n\n".join("\b\n" + paragraph for paragraph in page.strip().split("\n\n"))
    return GroupedCommand(name, groups, callback, paragraphs)


def _train(name: str, data: str, out: str, steps: int | None, resume: bool, given: dict[str, Any]) -> None:
    from ganfast import _build, api
    from ganfast.data import host
    from ganfast.engine.runfolder import removed_if_untrained

    if not host.AVAILABLE:
        click.echo(_build.report(), err=True)
    options = {key: value for key, value in given.items() if key not in ("data", "out", "steps", "resume")}
    with removed_if_untrained(Path(out)):
        run = api.train(name, data, steps=steps, out=out, resume=resume, **options)
    if run.interrupted:
        go_on = run.trainer.config["resume"]
        click.echo(f"stopped by {run.interrupted} at iteration {run.steps}; go on with: {go_on}")
    else:
        click.echo(f"{run.steps} iterations; everything is in {run.report}")


def _option(name: str, kind: type, choices: Iterable[Any], default: Any, text: str) -> click.Option:
    flag = "--" + name.replace("_", "-")
    choices = list(choices)
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=default, show_default=True, help=text)
    return click.Option([flag], type=click.Choice(choices) if choices else kind, default=default, show_default=True, help=text)


@ganfast.command(short_help="Make samples from a run.")
@click.argument("run")
@click.option("--n", default=64, show_default=True, type=click.IntRange(min=1), help="how many")
@click.option("--out", required=True, help="a .png (one grid), a .npy or .npz (the array), or a folder (one PNG each)")
@click.option("--labels", type=int, help="the class to make, for label-conditional recipes")
@click.option("--truncation", type=float, help="limit of the noise; smaller is safer and less varied")
@click.option("--seed", type=int, default=0, show_default=True, help="another seed makes other samples")
@click.option("--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1")
def sample(run: str, n: int, out: str, labels: int | None, truncation: float | None, seed: int, device: str) -> None:
    """Make samples from a RUN folder's newest checkpoint, or from one checkpoint's folder."""
    from ganfast import api
    from ganfast.engine import export

    write = export.writer(Path(out))
    with in_memory(f"with {n} samples: make --n smaller"):
        trainer = api.Trainer.resume(run, device=device, training=False)
        write(trainer.sample(n, truncation=truncation, labels=labels, seed=seed))
    click.echo(f"{n} samples of {trainer.recipe.name}, iteration {trainer.steps}, in {out}")


for another in (evaluation_command, representation_command, *explore.COMMANDS):
    ganfast.add_command(another)


@ganfast.command("recipes")
def recipes_table() -> None:
    """List the recipes: paper, networks, loss, constraint."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from ganfast import recipes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("recipe", "paper", "networks", "loss", "constraint"):
        table.add_column(column, no_wrap=column == "recipe")
    for name in recipes.names():
        about = recipes.about(name)
        table.add_row(name, about.paper, about.networks, about.loss, about.constraint)
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else 200).print(table)


@ganfast.group(cls=HelpfulGroup, short_help="Time kernels and training against stock PyTorch.")
def bench() -> None:
    """Time ganfast against the strongest stock PyTorch, in turns, in one process; keep the machine idle meanwhile."""


@bench.command()
@click.argument("names", nargs=-1)
@click.option("--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1")
@click.option("--out", help="a CSV file that the rows are added to")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(min=0.01), help="for each provider of a case")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores unless given")
def ops(names: tuple[str, ...], device: str, out: str | None, seconds: float, threads: int | None) -> None:
    """The ops called NAMES, or all of them, each backend against stock PyTorch."""
    import torch

    from ganfast.benches import harness
    from ganfast.benches import ops as benches
    from ganfast.engine.settings import resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    harness.check(target := None if out is None else Path(out))
    for name in names or benches.NAMES:
        harness.run(benches.cases(name, resolve_device(device)), target, seconds=seconds, show=click.echo)


def _several(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[str]:
    return [word for words in given for word in words.replace(",", " ").split()]


def _numbers(option: str, given: list[str], *, least: int) -> list[int]:
    numbers = [int(number) if number.isdecimal() else -1 for number in given]
    if not numbers or min(numbers) < least:
        raise InvalidValue(f"{option}: expected whole numbers of at least {least}, got {' '.join(given) or 'none'}")
    return numbers


@bench.command()
@click.option("--recipes", multiple=True, callback=_several, help="dcgan, wgan-gp, sngan; several with commas  [default: all]")
@click.option("--batch", multiple=True, default=["32,64"], show_default="32,64", callback=_several, help="several with commas")
@click.option("--critic-steps", multiple=True, default=["1"], show_default="1", callback=_several, help="several with commas")
@click.option("--device", default="auto", show_default=True, help="auto takes a GPU where there is one; cpu, cuda, cuda:1")
@click.option("--out", help="a CSV file that the rows are added to")
@click.option("--seconds", default=10.0, show_default=True, type=click.FloatRange(min=0.01), help="for each provider of a case")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; all cores unless given")
def training(
    recipes: list[str],
    batch: list[str],
    critic_steps: list[str],
    device: str,
    out: str | None,
    seconds: float,
    threads: int | None,
) -> None:
    """Whole iterations of the engine, against the fastest modes of the same loops in stock PyTorch."""
    import torch

    from ganfast.benches.training import suite
    from ganfast.engine.settings import resolve_device

    batches, steps = _numbers("--batch", batch, least=2), _numbers("--critic-steps", critic_steps, least=1)
    if threads is not None:
        torch.set_num_threads(threads)
    suite.check(target := None if out is None else Path(out))
    where = resolve_device(device)
    suite.run(recipes, batches, target, critic_steps=steps, device=where, seconds=seconds, show=click.echo)


@bench.command()
@click.argument("table")
@click.argument("picture")
@click.argument("names", nargs=-1)
def plot(table: str, picture: str, names: tuple[str, ...]) -> None:
    """Draw the last figures in the CSV file TABLE, of the benches called NAMES or of all, as the PNG file PICTURE."""
    from ganfast.benches import plot as plots
    from ganfast.errors import NotWritable

    figure = plots.draw(plots.of_benches(plots.read(Path(table)), names))
    try:
        figure.savefig(picture, format="png")
    except OSError as error:
        raise NotWritable(f"cannot write {picture}: {error.strerror}") from error


@ganfast.command()
@click.option("--verbose", is_flag=True, help="versions of everything, and what has run on a GPU")
def doctor(verbose: bool) -> None:
    """Say what was built, what runs here, and why not the rest."""
    from ganfast import doctor as checks

    click.echo(checks.report(verbose))


def main(arguments: list[str] | None = None) -> typing.NoReturn:
    """The command's entry point. Bad input is one line on stderr and exit status 2, a run that diverged 1."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(str(message))
        try:
            ganfast.main(arguments, prog_name="ganfast", standalone_mode=False)
        except click.exceptions.Exit as end:
            sys.exit(end.exit_code)
        except click.ClickException as error:
            _say(error.format_message())
            sys.exit(2)
        except Error as error:
            _say(str(error))
            sys.exit(1 if isinstance(error, NonFinite) else 2)
        except OSError as error:  # a file or folder that nothing above knew more about
            _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort):
            sys.exit(130)
    sys.exit(0)


def _say(text: str) -> None:
    print("ganfast:", " ".join(text.split()), file=sys.stderr)
