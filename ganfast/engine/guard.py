"""What happens when a loss or a gradient is NaN or Inf: the update is skipped.

What keeps happening is given up with a diagnosis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ganfast.errors import NonFinite
from ganfast.recipe import Named, Phase, Terms

PATIENCE = 3  # passes in a row over the same networks; that many skipped are too many


class Guard:
    """Skips updates that are not finite, without waiting for the device.

    A skipped pass leaves every weight and every buffer (batch norm statistics, singular vectors, image pools) as it was
    before. On a GPU the decision stays on the device; :meth:`exhausted` reads it late.
    """

    def __init__(self, networks: Iterable[nn.Module], device: torch.device) -> None:
        self._buffers = [buffer for network in networks for buffer in network.buffers() if buffer.numel()]
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]
        self._in_a_row: dict[str, Tensor] = {}  # by phase: one phase's success is not another's
        self._longest = torch.zeros((), dtype=torch.int32, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.waits = True  # for the answer before it steps; otherwise nothing here asks the device anything

    @torch.no_grad()
    def keep(self) -> None:
        """Remember the buffers as they are before a pass."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def update(self, phase: str, finite: Tensor, optimizers: list[torch.optim.Optimizer], constrain: Callable[[], None]) -> None:
        """Step ``optimizers`` and ``constrain`` the weights if ``finite`` (a bool scalar), otherwise put the buffers back."""
        in_a_row = self._in_a_row.setdefault(phase, torch.zeros_like(self._longest))
        in_a_row.add_(1).mul_(~finite)
        torch.maximum(self._longest, in_a_row, out=self._longest)
        self.skipped.add_(~finite)
        if not self.waits:
            for optimizer in optimizers:
                _step_where(finite, optimizer)
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(torch.where(finite, buffer, kept))
            constrain()  # weights that did not move still satisfy it
        elif finite:
            for optimizer in optimizers:
                optimizer.step()
            constrain()
        else:
            self._put_back()

    def exhausted(self) -> bool:
        """Whether :data:`PATIENCE` passes in a row of one phase were skipped since the last :meth:`reset`.

        Waits for the device.
        """
        return int(self._longest) >= PATIENCE

    def reset(self, skipped: int) -> None:
        """Forget what happened, but for the number of passes skipped."""
        self._in_a_row.clear()
        self._longest.zero_()
        self.skipped.fill_(skipped)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever happens to the buffers inside is undone afterwards."""
        self.keep()
        try:
            yield
        finally:
            self._put_back()

    @torch.no_grad()
    def _put_back(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)


def _step_where(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step that leaves everything as it was where ``finite`` is false, which the device decides."""
    groups = optimizer.param_groups
    if all(group.get("fused") for group in groups):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # fused optimizers skip where it is 1
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.step()
        return
    parameters = [p for group in groups for p in group["params"] if p.grad is not None]
    for p in parameters:
        assert p.grad is not None
        p.grad.copy_(torch.where(finite, p.grad, 0.0))  # what the first step makes of its state must be finite
    moved = [*parameters, *(s for p in parameters for s in optimizer.state.get(p, {}).values() if isinstance(s, Tensor))]
    before = [tensor.clone() for tensor in moved]
    optimizer.step()
    for tensor, kept in zip(moved, before, strict=True):
        tensor.copy_(torch.where(finite, tensor, kept))


def diagnose(networks: Named, phase: Phase, loss: Callable[[], Terms]) -> dict[str, Any]:
    """What is not finite in a pass, found by running it again with every layer watched; empty if everything is finite.

    ``{"phase", "terms": {name: value}, "layer", "gradients", "parameters"}``; ``layer`` is the first whose output is not finite.
    """
    layers: list[str] = []
    hooks = [
        layer.register_forward_hook(_watch(f"{name}.{path}".rstrip("."), layers))
        for name, network in networks.items()
        for path, layer in network.named_modules()
        if not list(layer.children())
    ]
    try:
        terms = loss()
        for name in phase.updates:
            networks[name].zero_grad(set_to_none=True)
        terms.total().backward()
    finally:
        for hook in hooks:
            hook.remove()
    values = {**terms.minimise, **terms.watch}
    found = {
        "terms": {name: str(value.item()) for name, value in values.items() if not value.isfinite()},
        "layer": layers[0] if layers else None,
        "gradients": _not_finite(networks, phase.updates, lambda parameter: parameter.grad),
        "parameters": _not_finite(networks, networks, lambda parameter: parameter),
    }
    return {"phase": phase.name, **found} if any(found.values()) else {}


def error(findings: Mapping[str, Any], step: int) -> NonFinite:
    """The findings as the error that ends a run."""
    if not findings:
        return NonFinite(f"iteration {step}: a loss or gradient was NaN or Inf and is finite when run again; lower the step size")
    terms = ", ".join(f"{name} is {value}" for name, value in findings["terms"].items()) or "every loss term is finite"
    places = [findings["layer"], *findings["parameters"], *(f"the gradient of {name}" for name in findings["gradients"])]
    first = next((place for place in places if place), "the loss itself")
    return NonFinite(
        f"iteration {step}, phase {findings['phase']!r}: {terms}; first not finite: {first}; lower the step size or use fp32"
    )


def _not_finite(networks: Named, names: Iterable[str], tensor: Callable[[nn.Parameter], Tensor | None]) -> list[str]:
    found = []
    for name in names:
        for key, parameter in networks[name].named_parameters():
            value = tensor(parameter)
            if value is not None and not value.isfinite().all():
                found.append(f"{name}.{key}")
    return found


def _watch(place: str, layers: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            layers.append(place)

    return hook
