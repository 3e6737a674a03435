"""One file an op: its ``cases(device)`` are what :mod:`ganfast.benches.harness` times."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import torch

from ganfast.benches.harness import Case
from ganfast.errors import InvalidValue, near

NAMES = (
    "spectral_norm",
    "batch_norm",
    "tanh",
    "convolution",
    "conv_norm",
    "resample",
    "adam",
    "gather_images",
    "generator",
    "carried_scale",
    "gradient_penalty",
    "critic_step",
    "penalty_curves",
    "frechet",
    "frechet_curves",
    "prdc",
)


def cases(name: str, device: torch.device) -> Iterator[Case]:
    """The cases of one op. Raises InvalidValue for an op without a bench."""
    if name not in NAMES:
        raise InvalidValue(f"no op with a bench is called {name!r}{near(name, NAMES)}")
    found: Iterator[Case] = importlib.import_module(f"ganfast.benches.ops.{name}").cases(device)
    return found
