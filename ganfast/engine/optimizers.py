"""Optimizers from their descriptions, their step sizes over a run, and their state as plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ganfast.errors import InvalidValue, near
from ganfast.optim import Adam
from ganfast.recipe import Optimizer

_KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "Adam": Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
    "SGD": torch.optim.SGD,
}
_FUSED = ("Adam", "AdamW", "SGD")


def build(spec: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that ``spec`` describes over all parameters of ``network``. Raises InvalidValue for what torch refuses."""
    if spec.kind not in _KINDS:
        raise InvalidValue(f"no optimizer is called {spec.kind!r}{near(spec.kind, _KINDS)}")
    fused = {"fused": True} if spec.kind in _FUSED else {}
    try:
        return _KINDS[spec.kind](network.parameters(), **{**fused, **spec.settings})
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValue(f"optimizer {spec.kind}: {error}") from None


def decayed(kind: str, step: int, total: int) -> float:
    """The factor on every step size in iteration ``step``: 1, or falling linearly to 0 over the second half of ``total``."""
    if kind == "none" or total <= 0:
        return 1.0
    return min(1.0, max(0.0, (total - step) / (total - total // 2)))


def keep_on(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Step sizes become tensors, which a recorded step reads anew each time; of two ways torch takes the one that never waits."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = torch.full((), group["initial_lr"], dtype=torch.float32, device=device)
        if "capturable" in group and device.type == "cuda":
            group["capturable"] = True


def set_factor(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        lr = group.setdefault("initial_lr", group["lr"]) * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, by ``index.name``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items() if isinstance(value, Tensor)
    }


def load_state_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`state_tensors`, for an optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter in parameters:
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Fused kernels walk parameter and state together, so both must be laid out alike.
                optimizer.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
