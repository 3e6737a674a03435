"""The one training loop: it folds over a recipe's phases and knows nothing of what they minimise."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganfast.data import Dataset, Sampler
from ganfast.data.sampler import RESIDENT_SHARE, Draws
from ganfast.engine import checkpoint, guard, optimizers, state
from ganfast.engine.capture import CudaRecorder, Recorder, Recordings
from ganfast.engine.ema import MovingAverage
from ganfast.engine.heap import keep_freed_memory
from ganfast.engine.randomness import borrowed, mix
from ganfast.engine.samples import Samples
from ganfast.engine.settings import Settings, resolve_device, resolve_precision
from ganfast.errors import Damaged, InvalidData, InvalidValue, NonFinite, NotWritable, whole
from ganfast.files import write_atomically
from ganfast.recipe import Named, Phase, Recipe, Terms

_LATE = 100  # iterations between looks at a GPU's finiteness flag


class Trainer:
    """Trains ``recipe`` on ``data``. The recipe's networks are moved to the device and trained in place.

    ``steps`` counts whole iterations: every phase with its repeats. Everything random in iteration s is a function of (seed,
    s), so a state that is saved and loaded goes on exactly as if it had never stopped. ``settings`` are the fields of
    :class:`Settings`.
    """

    def __init__(self, recipe: Recipe, data: Dataset, *, out: str | Path | None = None, **settings: Any) -> None:
        _check_fit(recipe, data)
        self.recipe, self.data = recipe, data
        self.settings = Settings.of(recipe.defaults, settings)
        self.device = resolve_device(self.settings.device)
        self.precision = resolve_precision(self.settings.precision, self.device)
        self.out = None if out is None else Path(out)
        if self.settings.batch == 1 and any(
            isinstance(m, nn.BatchNorm1d) for net in recipe.networks.values() for m in net.modules()
        ):
            raise InvalidValue(f"recipe {recipe.name!r} normalises over the batch: expected a batch of at least 2, got 1")
        self.steps = 0
        self.rollbacks = 0  # part of every seed: what diverged once is tried again with other draws
        self._trained = Named({name: net.to(self.device).train() for name, net in recipe.networks.items()})
        if data.image_size:
            for network in self._trained.values():
                network.to(memory_format=torch.channels_last)
        self._trainable = {name: [p for p in net.parameters() if p.requires_grad] for name, net in self._trained.items()}
        for phase in recipe.phases:
            for name in phase.updates:
                if not self._trainable[name]:
                    raise InvalidValue(
                        f"recipe {recipe.name!r}: phase {phase.name!r} updates {name!r}, which has nothing to train"
                    )
        self._averages = {name: MovingAverage(self._trained[name], decay) for name, decay in recipe.ema.items() if decay}
        self._optimizers = {name: optimizers.build(spec, self._trained[name]) for name, spec in recipe.optimizers.items()}
        self._guard = guard.Guard(self._trained.values(), self.device)
        seed, image = self.settings.seed, bool(data.image_size)
        self._sampler = Sampler(data, seed=seed, device=self.device, flip=self.settings.flip and image, channels_last=image)
        self._samples = Samples(recipe, data, self._sampler, self.device, seed)
        self._sampled = 0
        self._recordings: Recordings | None = None
        if self.device.type == "cuda":
            self._stay_on_device(CudaRecorder(self.device) if self.settings.graphs else None)
        else:
            keep_freed_memory()

    def _stay_on_device(self, recorder: Recorder | None) -> None:
        """Iterations are functions of tensors alone from now on, and recorded where that is possible."""
        self._guard.waits = False
        for optimizer in self._optimizers.values():
            optimizers.keep_on(optimizer, self.device)
        if recorder is not None and self._sampler.resident:
            self._recordings = Recordings(recorder)
        elif recorder is not None and self.recipe.reads:
            share = f"{RESIDENT_SHARE:.0%} of the GPU's free memory"
            warnings.warn(
                f"iterations run without a CUDA graph, slower: the data take more than {share}", RuntimeWarning, stacklevel=3
            )

    @property
    def _places(self) -> Iterator[int]:
        """Where the weights lie, which a recording knows them by."""
        return (parameter.data_ptr() for parameters in self._trainable.values() for parameter in parameters)

    # ---- training

    def step(self) -> dict[str, Tensor]:
        """One whole iteration.

        Returns every named term as a scalar tensor (``critic/penalty``, ``D(real)``, ``critic/grad_norm``).

        Nothing waits for the device. A pass whose loss or gradient is not finite is skipped; after several in a row raises
        NonFinite with a diagnosis, at once on a CPU and within 100 iterations on a GPU.
        """
        factor = optimizers.decayed(self.settings.decay, self.steps, self.settings.decay_steps)
        for optimizer in self._optimizers.values():
            optimizers.set_factor(optimizer, factor)
        for average in self._averages.values():
            average.prepare(self.steps)
        passes = self._passes(self.steps)
        draws = self._draws(self.steps, passes)
        with self._seeded(self.steps), self._deterministic(), self._thawed():
            if self._recordings is None:
                logs = self._iterate(passes, draws)
            else:
                kind = (*(phase.name for phase in passes), *self._places)
                logs = self._recordings.run(kind, lambda tensors: self._iterate(passes, draws.of(tensors)), draws.tensors)
        self.steps += 1
        if (self.device.type == "cpu" or self.steps % _LATE == 0) and self._guard.exhausted():
            raise self._diagnosis()
        return logs

    def _iterate(self, passes: Sequence[Phase], draws: Draws) -> dict[str, Tensor]:
        """All passes of an iteration: a function of tensors that nothing here reads on the host, so that it can be recorded."""
        logs: dict[str, Tensor] = {}
        last = {name: number for number, phase in enumerate(passes) for name in phase.updates}
        read, size = 0, self.settings.batch * self.settings.accumulate
        for number, phase in enumerate(passes):
            for name, average in self._averages.items():
                if last.get(name) == number and phase.after is None:  # what comes after it would change the weights again
                    average.ride(self._optimizers[name])
            logs |= self._pass(phase, draws.part(read, read + size))
            read += size * bool(phase.reads)
        for average in self._averages.values():
            average.update()
        return logs

    def _passes(self, step: int) -> list[Phase]:
        """Those of an iteration, a phase as often as it repeats."""
        return [phase for phase in self.recipe.phases if step % phase.every == 0 for _ in range(phase.repeat)]

    def _draws(self, step: int, passes: Sequence[Phase]) -> Draws:
        """What these passes of an iteration read of the data, one after the other."""
        reading = [phase for phase in passes if phase.reads]
        size = self.settings.batch * self.settings.accumulate
        fields = tuple(dict.fromkeys(field for phase in reading for field in phase.reads))
        return self._sampler.draws(self._passes_before(step) * size, len(reading) * size, fields)

    @contextlib.contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Inside, everything that is drawn from torch's generators is a function of (seed, step)."""
        with borrowed(self.device) as generators:
            for generator in generators:
                generator.manual_seed(mix(self.settings.seed, self.rollbacks, step))
            yield

    def _pass(self, phase: Phase, draws: Draws) -> dict[str, Tensor]:
        """Gradients of one phase over all accumulated batches, one look at whether they are finite, one update."""
        parameters = self.freeze_all_but(phase.updates)
        for parameter in parameters:
            parameter.grad = None
        self._guard.keep()
        if phase.before is not None:
            phase.before(self._trained)
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        logs: dict[str, Tensor] = {}
        for micro in range(self.settings.accumulate):
            terms = self._loss(phase, draws, micro)
            total = terms.total()
            if not total.requires_grad:
                raise InvalidValue(
                    f"phase {phase.name!r}: its loss does not depend on {', '.join(phase.updates)}, which it updates"
                )
            finite = finite & total.detach().isfinite()
            (total / self.settings.accumulate).backward()
            for name, value in {**{f"{phase.name}/{term}": v for term, v in terms.minimise.items()}, **terms.watch}.items():
                share = value.detach().float() / self.settings.accumulate
                logs[name] = logs[name] + share if name in logs else share
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, torch.float32)))
        stepping = [self._optimizers[name] for name in phase.updates]
        self._guard.update(
            phase.name, finite & norm.isfinite(), stepping, lambda: phase.after(self._trained) if phase.after else None
        )
        return {**logs, f"{phase.name}/grad_norm": norm}

    def _loss(self, phase: Phase, draws: Draws, micro: int) -> Terms:
        """The terms of a phase on one of a pass's batches."""
        n = self.settings.batch
        batch = Named(self._sampler.take(draws.part(micro * n, (micro + 1) * n), phase.reads) if phase.reads else {})
        if self.recipe.latent is not None:
            batch.update(self.recipe.latent.sample(n, self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            return Terms.of(phase.loss(self._trained, batch))

    def freeze_all_but(self, names: Iterable[str]) -> list[nn.Parameter]:
        """Only the trainable parameters of these networks collect gradients afterwards; returns them."""
        names = tuple(names)
        for name, parameters in self._trainable.items():
            wanted = name in names
            for parameter in parameters:
                parameter.requires_grad = wanted
        return [parameter for name in names for parameter in self._trainable[name]]

    @contextlib.contextmanager
    def _thawed(self) -> Iterator[None]:
        """Whatever is frozen inside, afterwards all that is trainable collects gradients again, also after an error."""
        try:
            yield
        finally:
            self.freeze_all_but(self._trained)

    def _passes_before(self, step: int) -> int:
        """Passes that read data before iteration ``step``; a lazy phase counts where it ran."""
        return sum(phase.repeat * -(-step // phase.every) for phase in self.recipe.phases if phase.reads)

    def _deterministic(self) -> contextlib.AbstractContextManager[None]:
        """cuDNN may otherwise choose algorithms whose sums depend on timing, and a resume would not be exact."""
        if self.device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
        return contextlib.nullcontext()

    def _diagnosis(self) -> NonFinite:
        """The first pass that is not finite in the iteration just done, run again and looked into.

        ``nonfinite.json`` has all of it.
        """
        step = self.steps - 1
        findings: dict[str, Any] = {}
        passes, read, size = self._passes(step), 0, self.settings.batch * self.settings.accumulate
        draws = self._draws(step, passes)
        with self._seeded(step), self._guard.undone(), self._thawed():
            for phase in passes:
                self.freeze_all_but(phase.updates)
                for micro in range(self.settings.accumulate):
                    again = functools.partial(self._loss, phase, draws.part(read, read + size), micro)
                    findings = findings or guard.diagnose(self._trained, phase, again)
                read += size * bool(phase.reads)
        if self.out is not None and findings:
            with contextlib.suppress(NotWritable):  # the error below says the gist of it
                text = json.dumps({"step": step, **findings}, indent=2) + "\n"
                write_atomically(self.out / "nonfinite.json", text.encode())
        return guard.error(findings, step)

    # ---- what there is to see

    @property
    def networks(self) -> Named:
        """The named modules as they are trained, and beside each that has one its moving average as ``NAME_ema``."""
        return Named({**self._trained, **{f"{name}_ema": average.module for name, average in self._averages.items()}})

    @property
    def images(self) -> int:
        """Real samples shown so far, over all phases that read data."""
        return self.images_at(self.steps)

    def images_at(self, step: int) -> int:
        """The same after ``step`` iterations."""
        return self._passes_before(step) * self.settings.batch * self.settings.accumulate

    @property
    def skipped(self) -> int:
        """Passes skipped so far because they were not finite. Waits for the device."""
        return int(self._guard.skipped)

    def sample(self, n: int, truncation: float | None = None, labels: Any = None, *, seed: int | None = None) -> NDArray[Any]:
        """``n`` samples of the moving averages: uint8 (n, H, W, C), or float32 (n, 2) for points.

        Successive calls give further samples; a ``seed`` gives the same ones each time. ``truncation`` limits the noise,
        ``labels`` asks for classes (one integer or n of them) where the recipe is label-conditional. Recipes that translate
        images translate the data's, in a fixed random order. Raises InvalidValue for what the recipe does not take.
        """
        output = self._samples.draw(self._averaged, n, self._sampled, truncation=truncation, labels=labels, seed=seed)
        self._sampled += n if seed is None else 0
        return output

    def stream(self, n: int, *, seed: int = 0) -> Iterator[Tensor]:
        """``n`` samples of a seed as tensors on the device, some at a time, see :meth:`sample`: for many, or on their way on."""
        return self._samples.stream(self._averaged, whole(n, "stream: n"), seed)

    def generate(self, inputs: Named) -> NDArray[Any]:
        """What the moving averages make of inputs as the recipe's latent gives them: uint8 (n, H, W, C), or float32 (n, 2)."""
        return self._samples.generate(self._averaged, inputs)

    def preview(self, n: int) -> dict[str, NDArray[Any]]:
        """The same ``n`` samples at any time in a run, as named columns of uint8 images (n, H, W, C) or of points (n, 2)."""
        return self._samples.preview(self._averaged, n)

    def score(self, x: NDArray[Any]) -> NDArray[Any]:
        """The critic's value (n,) at data points (n, ...). Raises InvalidValue for a recipe that has no ``score``."""
        return self._samples.score(self._trained, x)

    def pull(self, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """``n`` samples of the networks in training and, at each, the direction (n, ...) in which the loss pulls it."""
        return self._samples.pull(self._trained, n)

    @property
    def _averaged(self) -> Named:
        return Named({**self._trained, **{name: average.module for name, average in self._averages.items()}})

    # ---- state

    def save(self) -> Path:
        """Write a checkpoint under ``out`` and return its folder.

        Raises InvalidValue without ``out``, NotWritable on a full disk.
        """
        scalars = {
            "format": 1,
            "recipe": self.recipe.name,
            "step": self.steps,
            "rollbacks": self.rollbacks,
            "sampled": self._sampled,
            "skipped": self.skipped,
            "settings": dataclasses.asdict(self.settings),
            "data": self.data.digest,
            "device": str(self.device),
            "precision": str(self.precision).removeprefix("torch."),
            "torch": torch.__version__,
        }
        tensors = state.collect(self._modules, self._optimizers)
        return checkpoint.save(self._checkpoints, self.steps, checkpoint.State(tensors, scalars), keep=self.settings.keep)

    def load(self, saved: checkpoint.State) -> None:
        """Go back to a state of the same recipe. Raises Damaged before anything is changed."""
        scalars, counts = saved.scalars, ("step", "rollbacks", "sampled", "skipped")
        if scalars.get("format") != 1 or scalars.get("recipe") != self.recipe.name:
            found = f"{scalars.get('recipe')!r}, format {scalars.get('format')}"
            raise Damaged(f"expected a checkpoint of recipe {self.recipe.name!r}, format 1, got one of {found}")
        for name in counts:
            if not isinstance(scalars.get(name), int):
                raise Damaged(f"the checkpoint's state: expected {name!r} to be a whole number, got {scalars.get(name)!r}")
        state.restore(saved.tensors, self._modules, self._optimizers)
        if self._recordings:
            self._recordings.forget()  # the optimizers' state is a new one
        self.steps, self.rollbacks, self._sampled, skipped = (scalars[name] for name in counts)
        self._guard.reset(skipped)

    def load_newest(self, warn: Callable[[str], None]) -> None:
        """Go back to the newest undamaged checkpoint under ``out``; damaged ones are named to ``warn``."""
        self.load(checkpoint.load(self._checkpoints, warn=warn))

    def roll_back(self, warn: Callable[[str], None]) -> None:
        """Go back to the newest checkpoint, and on from there with other random draws."""
        tried = self.rollbacks + 1
        self.load_newest(warn)
        self.rollbacks = tried

    def sweep(self) -> None:
        """Remove what an interrupted save left behind. Only where no other process is training in the same folder."""
        checkpoint.sweep(self._checkpoints)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best score, where scores are taken during training; :meth:`resume` takes it."""
        return None if self.out is None else checkpoint.best(self._checkpoints)

    @property
    def best_step(self) -> int | None:
        """Its iteration."""
        return None if self.best is None else checkpoint.step_of(self.best)

    def choose_best(self, steps: Sequence[int]) -> None:
        """Keep the first of these steps that has a checkpoint as the best one, whatever is pruned. Raises NotWritable."""
        places = {checkpoint.step_of(place): place for place in reversed(checkpoint.saves(self._checkpoints))}
        checkpoint.choose_best(self._checkpoints, next((places[step] for step in steps if step in places), None))

    @property
    def has_checkpoint(self) -> bool:
        return self.out is not None and bool(checkpoint.saves(self._checkpoints))

    @property
    def _modules(self) -> dict[str, Mapping[str, nn.Module]]:
        return {"networks": self._trained, "ema": {name: average.module for name, average in self._averages.items()}}

    @property
    def _checkpoints(self) -> Path:
        if self.out is None:
            raise InvalidValue("this trainer has nowhere to save to: give it out=")
        return self.out / "checkpoints"


def _check_fit(recipe: Recipe, data: Dataset) -> None:
    """Raises InvalidData where the recipe reads what the data do not have, or was built for samples of another shape."""
    for name in recipe.reads:
        if name not in data.fields:
            raise InvalidData(f"recipe {recipe.name!r} needs {name!r}, and data {data.name!r} has only {', '.join(data.fields)}")
    shape = {"image_size": data.image_size, "channels": data.channels or data.points}
    for name, value in shape.items():
        if recipe.options.get(name, value) != value:
            raise InvalidData(
                f"recipe {recipe.name!r} was built for {name} {recipe.options[name]}, and data {data.name!r} has {name} {value}"
            )
