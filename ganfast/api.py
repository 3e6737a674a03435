"""Training by name: recipes and data put together with the engine, and a run's configuration written and read back."""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from ganfast import recipes
from ganfast._version import __version__
from ganfast.data import Dataset, open_dataset
from ganfast.engine import checkpoint, loop, trainer
from ganfast.engine.evaluate import Scorer
from ganfast.engine.randomness import seeded
from ganfast.engine.runfolder import CONFIG, RunFolder, locked, read_config
from ganfast.engine.settings import Settings
from ganfast.errors import Damaged, InvalidData, InvalidType, InvalidValue, NotFound, near, whole
from ganfast.recipe import Recipe

SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))
DATA_OPTIONS = ("image_size", "channels", "filter")  # how the data are opened; the recipe takes its size and channels from them
STEPS = 2000  # iterations of a run whose length nobody gave
_EVALUATION = ("eval_metrics", "eval_every_kimg", "eval_n", "eval_network")
_FREE = ("device", "graphs", "keep", "log_every", "tick_every", "checkpoint_every", *_EVALUATION)  # may differ when a run goes on
_RECORDED = {  # what config.json must hold, by section, for a run to go on
    "": ("recipe", "named", "options", "data", "engine", "given"),
    "data": ("name", "source", "options", "digest", "image_size", "channels", "points"),
    "engine": tuple(name for name in SETTINGS if name not in _FREE),
    "options": (),
    "given": (),
}


class Trainer(trainer.Trainer):
    """The engine's trainer, for a recipe by name and data by name, path or array.

    ``options`` are engine settings (batch, device, precision, seed, ...), data options (image_size, channels, filter) and the
    named recipe's own (width, critic_steps, ...), in one list. With ``out`` it makes a run folder there and can save. Raises
    InvalidValue, InvalidType or InvalidData for what does not fit, before anything is written.
    """

    def __init__(self, recipe: str | Recipe, data: Any, *, out: str | os.PathLike[str] | None = None, **options: Any) -> None:
        if out is not None and not os.fspath(out):
            raise InvalidValue("out: expected the name of a folder, got an empty one")
        settings, data_options, recipe_options = _sorted(recipe, options)
        opened = open_dataset(data, **data_options)
        named = isinstance(recipe, str)
        built = build(recipe, opened, seed=settings.get("seed", 0), **recipe_options) if isinstance(recipe, str) else recipe
        super().__init__(built, opened, out=None if out is None else Path(out), **settings)
        self.config = {**_config(self, _source(data), data_options, named), "given": _plain(options)}
        self._scorer = self._made_scorer()
        self._folder = None if self.out is None else RunFolder.create(self.out, self.config)

    def _made_scorer(self) -> Scorer | None:
        """What scores samples during training, if the settings ask for that: before anything is written, or trained in vain."""
        if not self.settings.evaluates:
            return None
        if self.out is None:
            raise InvalidValue("eval_metrics: scores are written to the run's folder: give it out=")
        from ganfast.evaluation.training import TrainingScorer

        return TrainingScorer(self)

    def run(self, steps: int) -> Run:
        """``steps`` further iterations with log, pictures, checkpoints and a report where there is an ``out``.

        SIGINT and SIGTERM save and end it early; ``Run.interrupted`` then names the signal.
        """
        return self._run_until(self.steps + whole(steps, "run: steps", least=0))

    def _run_until(self, until: int) -> Run:
        if until < self.steps:
            raise InvalidValue(
                f"the run in {self.out} is at iteration {self.steps} already: expected steps of at least that, got {until}"
            )
        end = self.settings.decay_steps if self.settings.decay != "none" else 0
        if end and until > max(end, self.steps):
            raise InvalidValue(
                f"step sizes reach zero at iteration {end}, so nothing is learned from there to {until}: "
                f"train anew with decay_steps={until} (--decay-steps), or with decay='none' (--decay none)"
            )
        if self.settings.decay != "none" and not self.settings.decay_steps:
            self.settings = dataclasses.replace(self.settings, decay_steps=until)
            self.config = {**self.config, "engine": {**self.config["engine"], "decay_steps": until}}
        if self.out is None:
            interrupted = loop.run(self, until)
            return Run(self, None, self.steps, [], interrupted)
        with locked(self.out):
            before = self.config
            commands = {"command": command(self.config, until), "resume": command(self.config, until, resume=True)}
            self.config = {**self.config, "steps": until, "intervals": loop.intervals(self.settings, until), **commands}
            self._folder = RunFolder.create(self.out, self.config, resume=True)
            checkpoint.truncate_after(self._checkpoints, self.steps)
            loop.rewind(self._folder, self.steps, before)
            self.sweep()
            seconds = max((row.get("seconds", 0.0) for row in self._folder.rows()), default=0.0)
            interrupted = loop.run(self, until, self._folder, seconds=seconds, scorer=self._scorer)
            return Run(self, self.out, self.steps, self._folder.rows(), interrupted)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        *,
        recipe: Recipe | None = None,
        data: Any = None,
        begin_again: bool = False,
        training: bool = True,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        **options: Any,
    ) -> Trainer:
        """The trainer of a run folder at its newest undamaged checkpoint, or at the checkpoint folder given.

        ``recipe`` and ``data`` are needed only where the run was made from objects and not from names, or where the data have
        moved; without ``training``, for samples alone, a recipe that makes them from noise needs no data at all. A run that
        ended before its first checkpoint may ``begin_again``, as ``warn`` is then told. ``options`` may repeat what the run was
        made with; only device, intervals and ``keep`` may differ. Raises NotFound where there is nothing to resume, Damaged
        where no checkpoint is whole, InvalidValue for options and InvalidData for data that contradict the run.
        """
        place = Path(path)
        one = place if (place / checkpoint.MANIFEST).exists() else None
        out = place.parent.parent if one else place
        if not out.is_dir():
            raise NotFound(f"nothing to resume: there is no folder {out}")
        config = _run_config(out)
        settings, data_options, recipe_options = _sorted(config["recipe"] if config["named"] else recipe, options)
        _agree(out, config, {**settings, **data_options, **recipe_options})
        if not config["named"] and recipe is None:
            raise InvalidValue(f"{out} was trained with a recipe object {config['recipe']!r}: pass recipe= to resume it")
        if config["data"]["source"] is None and data is None and training:
            raise InvalidValue(f"{out} was trained on data given as an object: pass data= to resume it")
        if recipe is None:
            with seeded(torch.device("cpu"), config["engine"]["seed"]):
                recipe = recipes.get(config["recipe"], **config["options"])
        if not training and not recipe.sample_reads:
            opened = _stand_in(config["data"], recipe)
        else:
            opened = open_dataset(config["data"]["source"] if data is None else data, **config["data"]["options"])
        if training and opened.digest != config["data"]["digest"]:
            raise InvalidData(f"{out} was trained on {config['data']['name']!r}, and the contents of {opened.name!r} differ")
        engine = {**config["engine"], **{key: value for key, value in settings.items() if key in _FREE}}
        self = cls.__new__(cls) if training else _ForSamples.__new__(_ForSamples)
        trainer.Trainer.__init__(self, recipe, opened, out=out, **engine)
        described = {**config["data"], "source": _source(data) or config["data"]["source"]}
        self.config, self._folder = {**config, "engine": engine, "data": described, "out": str(out)}, RunFolder(out)
        self._scorer = self._made_scorer() if training else None
        if one is not None:
            self.load(checkpoint.read(one))
        elif begin_again and not self.has_checkpoint:
            warn(f"{out} has no checkpoint yet: it begins again at iteration 0")
        else:
            self.load_newest(warn)
        return self


@dataclass(frozen=True)
class Run:
    """What training left: the trainer as it stands, the folder, the iterations done, the rows of the log."""

    trainer: Trainer
    out: Path | None
    steps: int
    log: list[dict[str, Any]]
    interrupted: str  # the signal that ended it early, or empty

    @property
    def report(self) -> Path | None:
        """The self-contained page with everything, if the run has a folder."""
        return None if self.out is None else self.out / "report.html"


def train(
    recipe: str | Recipe,
    data: Any,
    *,
    steps: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Run:
    """Train ``recipe`` on ``data`` up to iteration ``steps`` (2,000 unless given) and leave a run folder in ``out``.

    ``options`` are those of :class:`Trainer`. ``resume`` goes on with the run in ``out``, to its own length unless given. See
    :class:`Trainer` for what is raised.
    """
    if steps is not None:
        steps = whole(steps, "train: steps", least=0)
    if not resume:
        return Trainer(recipe, data, out=out, **options)._run_until(STEPS if steps is None else steps)
    if out is None:
        raise InvalidValue("resume: expected the run's folder as out")
    if isinstance(recipe, str) and Path(out).is_dir() and (trained := _run_config(Path(out))["recipe"]) != recipe:
        raise InvalidValue(f"{out} holds a run of {trained!r}, not of {recipe!r}; choose another --out")
    own = None if isinstance(recipe, str) else recipe
    resumed = Trainer.resume(out, recipe=own, data=data, begin_again=True, **options)
    return resumed._run_until(resumed.config.get("steps", STEPS) if steps is None else steps)


class _ForSamples(Trainer):
    """A run that was opened without its data: it makes samples, and there is nothing to train on."""

    def step(self) -> dict[str, torch.Tensor]:
        raise self._refusal

    def save(self) -> Path:
        raise self._refusal

    def _run_until(self, until: int) -> Run:
        raise self._refusal

    @property
    def _refusal(self) -> InvalidValue:
        return InvalidValue(f"{self.out} was opened for samples alone: resume it without training=False to train or save")


def build(name: str, data: Dataset, *, seed: int = 0, **options: Any) -> Recipe:
    """The recipe called ``name`` for ``data``.

    Size, channels and classes are the data's, initial weights follow from ``seed``.
    """
    facts: dict[str, Any] = {"image_size": data.image_size, "channels": data.channels or data.points}
    if data.classes:
        facts["classes"] = data.classes
        if options.get("classes", data.classes) < data.classes:
            raise InvalidValue(f"classes: data {data.name!r} has {data.classes}, got {options['classes']}")
    with seeded(torch.device("cpu"), seed):
        return recipes.get(name, **{**facts, **options})


def command(config: Mapping[str, Any], steps: int, *, resume: bool = False) -> str:
    """The command that repeats a run, or goes on with it; empty where recipe or data were Python objects."""
    if not config["named"] or config["data"]["source"] is None:
        return ""
    words = [
        "ganfast",
        "train",
        config["recipe"],
        "--data",
        config["data"]["source"],
        "--out",
        config["out"],
        "--steps",
        str(steps),
    ]
    if resume:
        return shlex.join([*words, "--resume"])
    decay_steps = config["engine"]["decay_steps"]
    given = config["given"] | ({"decay_steps": decay_steps} if decay_steps not in (0, steps) else {})
    for name, value in given.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)


def _sorted(recipe: str | Recipe | None, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Options by who takes them: the engine, the data, the recipe. Raises InvalidValue for one that nobody takes."""
    own = recipes.options(recipe) if isinstance(recipe, str) else {}
    if not isinstance(recipe, str | Recipe | None):
        raise InvalidType(f"expected a recipe's name or a Recipe, got {type(recipe).__name__}")
    for name in options:
        if name not in (*SETTINGS, *DATA_OPTIONS, *own):
            what = f"recipe {recipe!r}" if isinstance(recipe, str) else "the engine"
            raise InvalidValue(f"{what} has no option {name!r}{near(name, [*SETTINGS, *DATA_OPTIONS, *own])}")
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    data = {name: value for name, value in options.items() if name in DATA_OPTIONS and value is not None}
    rest = {name: value for name, value in options.items() if name in own and name not in DATA_OPTIONS}
    return settings, data, rest


def _config(made: Trainer, source: str | None, data_options: Mapping[str, Any], named: bool) -> dict[str, Any]:
    recipe, data = made.recipe, made.data
    return {
        "recipe": recipe.name,
        "named": named,
        "about": dataclasses.asdict(recipe.about),
        "options": dict(recipe.options),
        "data": {**data.describe(), "source": source, "options": dict(data_options)},
        "engine": {
            **dataclasses.asdict(made.settings),
            "device": str(made.device),
            "precision": "bf16" if made.precision == torch.bfloat16 else "fp32",
        },
        "out": None if made.out is None else str(made.out),
        "threads": torch.get_num_threads(),
        "versions": {
            "ganfast": __version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
    }


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they were given, without those left to their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _source(data: Any) -> str | None:
    """What opens the data again from anywhere, if it is a name or a path."""
    if not isinstance(data, str | os.PathLike):
        return None
    return os.path.abspath(data) if os.path.exists(data) else os.fspath(data)


def _stand_in(described: Mapping[str, Any], recipe: Recipe) -> Dataset:
    """A data set of one empty row, shaped as the one that a configuration describes."""
    size, channels, points = (described[key] for key in ("image_size", "channels", "points"))
    row = numpy.zeros((1, size, size, channels), numpy.uint8) if size else numpy.zeros((1, points), numpy.float32)
    fields = {name: numpy.zeros(1, numpy.int64) if name == "labels" else row for name in recipe.reads}
    return Dataset(described["name"], {"real": fields})


def _run_config(out: Path) -> dict[str, Any]:
    """config.json of a run that can go on. Raises NotFound or Damaged."""
    config = read_config(out)
    for section, keys in _RECORDED.items():
        entries = config[section] if section else config
        if not isinstance(entries, dict):
            raise Damaged(f"{out / CONFIG}: expected {section!r} to be a JSON object, got {entries!r}")
        for key in keys:
            if key not in entries:
                missing = f"{section}.{key}" if section else key
                raise Damaged(f"{out / CONFIG} has no {missing!r}: it is not the configuration of a run that can go on")
    return config


def _agree(out: Path, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    data = {"filter": "lanczos", **config["data"], **config["data"]["options"]}
    had = {**data, **config["options"], **config["engine"]}
    for name, value in given.items():
        if name not in _FREE and had.get(name) != value and config["given"].get(name) != value:
            raise InvalidValue(
                f"{name}: the run in {out} has {had.get(name)}, got {value}; a run that goes on keeps its configuration"
            )
