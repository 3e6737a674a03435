"""ganfast: a GAN engine with fused kernels.

    run = ganfast.train("dcgan", "fashion-mnist-10k", steps=1000, out="runs/a")

Public names load what they need when they are first used, so that importing ganfast costs little beyond importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ganfast._version import __version__ as __version__
from ganfast.backends import backends as backends  # at once: the submodule of that name would hide it later

if TYPE_CHECKING:
    from ganfast import data as data
    from ganfast import losses as losses
    from ganfast import metrics as metrics
    from ganfast import nn as nn
    from ganfast import recipes as recipes
    from ganfast.api import Run as Run
    from ganfast.api import Trainer as Trainer
    from ganfast.api import train as train
    from ganfast.errors import Error as Error
    from ganfast.nn.fuse import fuse as fuse
    from ganfast.nn.spectral_norm import spectral_norm_ as spectral_norm_
    from ganfast.penalties import gradient_penalty as gradient_penalty
    from ganfast.penalties import penalised_loss as penalised_loss
    from ganfast.penalties import penalty_plan as penalty_plan
    from ganfast.penalties import r1_penalty as r1_penalty
    from ganfast.penalties import r2_penalty as r2_penalty
    from ganfast.recipe import Phase as Phase
    from ganfast.recipe import Recipe as Recipe

_HOMES = {
    "Error": "ganfast.errors",
    "Phase": "ganfast.recipe",
    "Recipe": "ganfast.recipe",
    "Run": "ganfast.api",
    "Trainer": "ganfast.api",
    "fuse": "ganfast.nn.fuse",
    "gradient_penalty": "ganfast.penalties",
    "penalised_loss": "ganfast.penalties",
    "penalty_plan": "ganfast.penalties",
    "r1_penalty": "ganfast.penalties",
    "r2_penalty": "ganfast.penalties",
    "spectral_norm_": "ganfast.nn.spectral_norm",
    "train": "ganfast.api",
}
_PACKAGES = ("data", "losses", "metrics", "nn", "recipes")

__all__ = [*_HOMES, *_PACKAGES, "__version__", "backends"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"ganfast.{name}")
    else:
        raise AttributeError(f"module 'ganfast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
