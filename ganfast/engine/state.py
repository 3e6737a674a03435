"""The state of training as named tensors, and back again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ganfast.engine.optimizers import load_state_tensors, state_tensors
from ganfast.errors import Damaged

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]


def collect(modules: Mapping[str, Modules], optimizers: Optimizers) -> dict[str, Tensor]:
    """Tensors under ``kind.name.key``: ``networks.G.layers.0.weight``, ``ema.G...``, ``optimizers.G.0.exp_avg``."""
    tensors: dict[str, Tensor] = {}
    for kind, named in modules.items():
        for name, module in named.items():
            tensors |= {f"{kind}.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        tensors |= {f"optimizers.{name}.{key}": value for key, value in state_tensors(optimizer).items()}
    return tensors


def restore(tensors: Mapping[str, Tensor], modules: Mapping[str, Modules], optimizers: Optimizers) -> None:
    """The inverse of :func:`collect`. Raises Damaged, before anything is changed, if names or shapes differ."""
    shapes = {
        f"optimizers.{name}.{index}": tuple(parameter.shape)
        for name, optimizer in optimizers.items()
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
    }
    for key, value in tensors.items():
        owner, shape = key.rpartition(".")[0], tuple(value.shape)
        if key.startswith("optimizers.") and shape not in ((), shapes.get(owner, "none")):
            raise Damaged(f"the checkpoint does not fit the optimizers: {key} of shape {shape} belongs to no parameter")
    wanted = {key: tuple(value.shape) for key, value in collect(modules, {}).items()}
    given = {key: tuple(value.shape) for key, value in tensors.items() if not key.startswith("optimizers.")}
    for key in sorted(wanted.keys() | given.keys()):
        if wanted.get(key) != given.get(key):
            raise Damaged(
                f"the checkpoint does not fit the networks: expected {key} of shape {wanted.get(key)}, got {given.get(key)}"
            )
    for kind, named in modules.items():
        for name, module in named.items():
            module.load_state_dict(_under(tensors, f"{kind}.{name}."))
    for name, optimizer in optimizers.items():
        load_state_tensors(optimizer, _under(tensors, f"optimizers.{name}."))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
