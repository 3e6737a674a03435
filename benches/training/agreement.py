"""Whether both sides do the same maths: their losses from the same weights, with the same images, noise and interpolations.

The engine's phase losses are wrapped to write down what they are given and where the random generators stand, and the stock loop
is fed with that. Two ways of rounding the same iteration drift apart, and a GAN enlarges what they differ by; how far that
goes without any difference in the maths is shown by stock PyTorch against itself in its other memory layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ganfast.benches.training.stock import Loop, Losses, Mode
from ganfast.benches.training.work import Work
from ganfast.engine.randomness import borrowed, generators
from ganfast.recipe import Named, Phase, PhaseLoss, Recipe

STEPS = 20


@dataclass(frozen=True)
class Given:
    """What one pass was given."""

    phase: str
    batch: Mapping[str, Tensor]
    draws: list[Tensor]  # states of the default generators, from which the pass goes on to draw


def differences(work: Work, dtype: torch.dtype, device: torch.device, steps: int = STEPS) -> tuple[dict[str, float], ...]:
    """Of each term, the engine's difference from stock over the first ``steps`` iterations, and that of stock's layouts.

    The largest difference at any iteration, relative to the term's largest value: Wasserstein losses pass through zero.
    """
    tape: list[list[Given]] = []
    trainer = work.ours(dtype, device, recorded(work.recipe(), tape))
    ours = []
    for _ in range(steps):
        tape.append([])
        logs = trainer.step()
        ours.append({name: value for name, value in logs.items() if name.endswith(("/adversarial", "/penalty"))})
    stock, other = (
        [replayed(loop, passes) for passes in tape]
        for loop in (work.stock(Mode(dtype, channels_last), device) for channels_last in (False, True))
    )
    return _apart(ours, stock), _apart(other, stock)


def recorded(recipe: Recipe, tape: list[list[Given]]) -> Recipe:
    """``recipe``, whose passes append what they are given to the last of ``tape``."""

    def wrapped(phase: Phase) -> PhaseLoss:
        def loss(networks: Named, batch: Named) -> Any:
            states = [generator.get_state() for generator in generators(next(iter(batch.values())).device)]
            tape[-1].append(Given(phase.name, {name: value.clone() for name, value in batch.items()}, states))
            return phase.loss(networks, batch)

        return loss

    phases = tuple(dataclasses.replace(phase, loss=wrapped(phase)) for phase in recipe.phases)
    return dataclasses.replace(recipe, phases=phases)


def replayed(loop: Loop, passes: list[Given]) -> Losses:
    """The losses of one iteration of ``loop`` on what the engine was given."""
    losses: Losses = {}
    layout: Any = torch.channels_last if loop.mode.channels_last else torch.contiguous_format
    with borrowed(loop.device) as draws:
        for given in passes:
            for generator, state in zip(draws, given.draws, strict=True):
                generator.set_state(state)
            if given.phase == "critic":
                losses |= loop.critic(given.batch["real"].contiguous(memory_format=layout), given.batch["z"])
            else:
                losses |= loop.generator(given.batch["z"])
    return losses


def _apart(found: list[Losses], expected: list[Losses]) -> dict[str, float]:
    apart = {}
    for term in expected[0]:
        a, b = (torch.stack([losses[term].double() for losses in run]) for run in (found, expected))
        apart[term] = float((a - b).abs().max() / b.abs().max())
    return apart
