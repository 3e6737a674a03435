"""Adam over all parameters of a network in one pass through memory, with the moving average of the weights in the same pass."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ganfast.ops.adam import adam_, adam_reference_, served

_TORCHS: Any = inspect.unwrap(torch.optim.Adam.step)  # without the hooks around it, which are around ours already


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``: the same arguments, the same state, the same numbers to rounding (Kingma & Ba 2015).

    One call of the op :mod:`ganfast.ops.adam` makes a step, whatever the parameters' layouts; PyTorch's own kernel for the CPU
    copies what is not contiguous there and back, channels last among it. Whatever the op does not do (weight decay, amsgrad,
    other dtypes, a loss scaler, a device without a kernel) PyTorch's kernels do.

    ``follow(averages, pull)`` lets the next step move averages too, towards the parameters as they are after it.
    """

    _averages: dict[Tensor, Tensor] = {}  # noqa: RUF012  # of the class: a copied optimizer follows nothing
    _pull: float | Tensor = 0.0

    def __init__(self, params: Any, *arguments: Any, **settings: Any) -> None:
        params = list(params)
        complexes = any(isinstance(p, Tensor) and p.is_complex() for p in params)
        fused = not (complexes or settings.get("foreach") or settings.get("differentiable"))
        super().__init__(params, *arguments, **{"fused": fused, **settings})

    def follow(self, averages: dict[Tensor, Tensor], pull: float | Tensor) -> None:
        """``averages`` by parameter: the next step takes out those that it moves by ``pull`` of the way, and leaves the rest."""
        self._averages, self._pull = averages, pull

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        known = getattr(self, "grad_scale", None) is None and all(map(_known, self.param_groups))
        batches = [(group, batch) for group in self.param_groups for batch in self._batches(group)] if known else []
        if known and all(_taken(batch) for _, batch in batches):
            for group, batch in batches:
                self._move(group, batch)
        else:
            _TORCHS(self)
        self._averages = {}
        return loss

    def _batches(self, group: dict[str, Any]) -> list[list[_Moved]]:
        """The parameters that have gradients, those of one device and one dtype together."""
        alike: defaultdict[Any, list[_Moved]] = defaultdict(list)
        for p in group["params"]:
            if (grad := p.grad) is not None:
                alike[p.device, p.dtype].append(_Moved(p, grad, *_moments(p, self.state[p])))
        return list(alike.values())

    def _move(self, group: dict[str, Any], batch: list[_Moved]) -> None:
        params, grads, exp_avgs, exp_avg_sqs, steps = (list(tensors) for tensors in zip(*batch, strict=True))
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None:
            found_inf = found_inf.view(())
        if found_inf is None:
            torch._foreach_add_(steps, 1)
        else:
            torch._foreach_add_(steps, [1 - found_inf] * len(steps))  # of one tensor alone torch would ask for its value
        averages: list[Tensor] = []
        if self._averages and all(p in self._averages and self._averages[p].stride() == p.stride() for p in params):
            averages = [self._averages.pop(p) for p in params]
        lr, pull = (_number(value, params[0].device) for value in (group["lr"], self._pull))
        beta1, beta2 = group["betas"]
        # a moment lies as its parameter does unless that has gaps: no kernel is for that, and PyTorch's gets it wrong on a CPU
        step = adam_ if all(m.stride() == p.stride() for p, _, m, *_ in batch) else adam_reference_
        step(params, grads, exp_avgs, exp_avg_sqs, steps, averages, lr, pull, beta1, beta2, group["eps"], found_inf)


class _Moved(NamedTuple):
    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def _moments(p: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments, laid out as the parameter is by now, and the number of steps, under PyTorch's names and in its types."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    for name in ("exp_avg", "exp_avg_sq"):
        if state[name].stride() != p.stride():
            state[name] = torch.empty_like(p, dtype=state[name].dtype).copy_(state[name])
    return state["exp_avg"], state["exp_avg_sq"], state["step"]


def _known(group: dict[str, Any]) -> bool:
    """Whether the op has what this group asks for."""
    return group["fused"] and not any(group[name] for name in ("weight_decay", "amsgrad", "maximize", "differentiable"))


def _taken(batch: list[_Moved]) -> bool:
    """Whether there is a kernel for these tensors."""
    first = batch[0].param
    if not served(first.device) or first.dtype not in (torch.float32, torch.float64):
        return False
    return all(g.layout == torch.strided and g.dtype == p.dtype for p, g, *_ in batch)


def _number(value: float | Tensor, device: torch.device) -> Tensor:
    """As the op takes it; a tensor stays one, so that a captured graph finds it changed."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float64)
    return torch.full((), value, dtype=torch.float64, device=device)
