"""Counter-based randomness: what an iteration draws is a function of (seed, step), so a resume needs the step alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """A 63-bit seed from integers, by splitmix64 over each in turn (Steele et al. 2014): nearby inputs give unrelated seeds."""
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state ^ (word & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def generators(device: torch.device) -> list[torch.Generator]:
    """Torch's default generators that code on ``device`` draws from: the CPU's, and the device's own."""
    if device.type != "cuda":
        return [torch.default_generator]
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


@contextmanager
def borrowed(device: torch.device) -> Iterator[list[torch.Generator]]:
    """The default generators, to seed at will; the caller's own sequence goes on afterwards as if nothing had been drawn."""
    ours = generators(device)
    states = [generator.get_state() for generator in ours]
    try:
        yield ours
    finally:
        for generator, state in zip(ours, states, strict=True):
            generator.set_state(state)


@contextmanager
def seeded(device: torch.device, *words: int) -> Iterator[None]:
    """Everything drawn inside is a function of ``words``."""
    with borrowed(device) as ours:
        for generator in ours:
            generator.manual_seed(mix(*words))
        yield
