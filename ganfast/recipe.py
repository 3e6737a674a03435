"""What a GAN variant is: named networks, and phases that say which of them is updated, how often, by which loss.

The engine folds over the phases. It knows no loss and no recipe by name, so everything in which variants differ is a slot here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ganfast.errors import InvalidType, InvalidValue, near


class Named(dict[str, Any]):
    """A mapping whose entries are attributes too: ``nets.G`` is ``nets["G"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no entry {name!r}; there are {', '.join(self) or 'none'}") from None


@dataclass(frozen=True)
class Terms:
    """What a phase returns: the loss terms, whose sum is minimised, and scalars that are only watched.

    Every value is a scalar tensor. Both kinds appear in the logs under their names.
    """

    minimise: Mapping[str, Tensor]
    watch: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        return torch.stack([term.float() for term in self.minimise.values()]).sum()

    def __post_init__(self) -> None:
        if not self.minimise:
            raise InvalidValue("a phase's loss returned no term to minimise")
        for name, value in {**self.minimise, **self.watch}.items():
            if not isinstance(value, Tensor) or value.dim():
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise InvalidType(f"expected every term of a phase's loss to be a scalar tensor, got {name!r} of {got}")

    @staticmethod
    def of(value: Terms | Mapping[str, Tensor] | Tensor) -> Terms:
        """A bare tensor is one term called ``loss``; a mapping is all terms and nothing watched."""
        if isinstance(value, Terms):
            return value
        if isinstance(value, Tensor):
            return Terms({"loss": value})
        if isinstance(value, Mapping):
            return Terms(value)
        raise InvalidType(f"expected a phase's loss to return Terms, a mapping of scalars or a scalar, got {value!r}")


PhaseLoss = Callable[[Named, Named], "Terms | Mapping[str, Tensor] | Tensor"]


@dataclass(frozen=True)
class Phase:
    """One kind of update within an iteration.

    ``loss(networks, batch)`` sees the networks by name and one batch: the data fields in ``reads`` (images (N, C, H, W) in
    [-1, 1], points (N, 2), labels (N,)) and the generator's inputs that the recipe's latent draws (``batch.z``, asked labels
    ``batch.y``). Networks outside ``updates`` are frozen while it runs: they pass gradients on and collect none. All
    randomness comes from torch's default generator, which the engine seeds from (seed, step).
    """

    name: str
    updates: tuple[str, ...]
    loss: PhaseLoss
    repeat: int = 1  # passes per iteration, each with a batch of its own
    every: int = 1  # lazy phases run only in iterations divisible by this
    reads: tuple[str, ...] = ()  # data fields that the loss uses
    before: Callable[[Named], None] | None = None  # done once before a pass, however many batches it accumulates
    after: Callable[[Named], None] | None = None  # weight constraint, applied after each optimizer step

    def __post_init__(self) -> None:
        if self.repeat < 1 or self.every < 1:
            raise InvalidValue(f"phase {self.name!r}: repeat and every must be at least 1, got {self.repeat} and {self.every}")
        if not self.updates:
            raise InvalidValue(f"phase {self.name!r} updates no network; name at least one")


class Latent(Protocol):
    """Where a generator's inputs come from."""

    @property
    def columns(self) -> int:
        """Pictures in a row of the grid, 0 where any number will do."""

    def sample(
        self, n: int, device: torch.device, *, truncation: float | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``n`` fresh inputs from torch's default generator: ``z`` (n, latent_dim), and ``y`` (n,) where it takes labels.

        ``truncation`` draws normal noise anew where its magnitude is larger; ``labels`` (n,) asks for classes.
        """

    def grid(self, n: int, device: torch.device) -> dict[str, Tensor]:
        """``n`` inputs worth watching over a whole run: labels in order, a code swept from end to end."""


@dataclass(frozen=True)
class Optimizer:
    """A torch optimizer by name with its settings: ``Optimizer("Adam", lr=2e-4, betas=(0.5, 0.999))``."""

    kind: str
    settings: Mapping[str, Any]

    def __init__(self, kind: str, **settings: Any) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "settings", settings)


@dataclass(frozen=True)
class About:
    """One row of the table of recipes."""

    paper: str
    networks: str
    loss: str
    constraint: str = "none"


def generate(networks: Named, inputs: Named) -> Tensor:
    """The usual sample: the generator called with all its inputs by name."""
    output: Tensor = networks.G(**inputs)
    return output


@dataclass(frozen=True)
class Recipe:
    """A GAN variant as data.

    ``networks`` holds modules by name; modules without parameters (an image pool) are state that is saved with the rest.
    ``sample(networks, inputs)`` says what a sample is: images (N, C, H, W) in [-1, 1] or points (N, 2).
    ``preview(networks, inputs)`` names the picture columns that a run draws, by default the samples alone.
    """

    name: str
    networks: Mapping[str, nn.Module]
    phases: tuple[Phase, ...]
    latent: Latent | None  # None: samples are made from data, as in CycleGAN
    optimizers: Mapping[str, Optimizer]
    about: About
    ema: Mapping[str, float] = field(default_factory=dict)  # network -> decay per iteration
    sample: Callable[[Named, Named], Tensor] = generate
    preview: Callable[[Named, Named], Mapping[str, Tensor]] | None = None
    sample_reads: tuple[str, ...] = ()  # data fields that sample and preview use
    score: Callable[[Named, Tensor], Tensor] | None = None  # critic's value (N,) at data points, for drawing
    defaults: Mapping[str, Any] = field(default_factory=dict)  # engine options this variant wants unless told otherwise
    options: Mapping[str, Any] = field(default_factory=dict)  # what the recipe was built with

    def __post_init__(self) -> None:
        for phase in self.phases:
            for name in phase.updates:
                if name not in self.networks:
                    raise InvalidValue(f"recipe {self.name!r}: phase {phase.name!r} updates {name!r}, which is no network of it")
                if name not in self.optimizers:
                    raise InvalidValue(f"recipe {self.name!r}: network {name!r} is updated and has no optimizer")
        if not self.phases:
            raise InvalidValue(f"recipe {self.name!r} has no phases")
        if len({phase.name for phase in self.phases}) < len(self.phases):
            raise InvalidValue(f"recipe {self.name!r} has two phases of one name: logs and NaN counts go by it")
        for what, names in (("averages", self.ema), ("has an optimizer for", self.optimizers)):
            for name in names:
                if name not in self.networks:
                    raise InvalidValue(
                        f"recipe {self.name!r} {what} {name!r}, which is no network of it{near(name, self.networks)}"
                    )

    @property
    def reads(self) -> tuple[str, ...]:
        """Every data field that the recipe needs."""
        return tuple(dict.fromkeys([*(f for phase in self.phases for f in phase.reads), *self.sample_reads]))
