"""Batch norm and the activation after it as one module, in anybody's network.

:func:`fuse` finds convolution, batch norm and (Leaky)ReLU as neighbours in an ``nn.Sequential`` and lets the batch norm apply the
activation, whose slot keeps its place as ``nn.Identity``. Both orders of the same arithmetic: outputs, gradients and running
statistics are those of the chain that was there, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm with the activation after it: (N, C, H, W) to (N, C, H, W). Made by :func:`fuse` from a BatchNorm2d."""

    activation: nn.ReLU | nn.LeakyReLU

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.activation(super().forward(input))
        return output


class Verdict(NamedTuple):
    """What became of one batch norm: where it is, ``"fused"`` or ``"left"``, and the chain or the reason."""

    path: str
    status: str
    why: str


def fuse(module: ModuleT) -> ModuleT:
    """Fuse every chain of Conv2d or ConvTranspose2d, BatchNorm2d and ReLU or LeakyReLU in ``module``, in place, and return it.

    Chains are consecutive children of an ``nn.Sequential``, however deeply nested. Parameters, buffers, ``state_dict`` keys and
    their order, hooks, train and eval mode, deepcopy and pickling stay as they were; what cannot keep them is left alone, and
    :func:`fuse_report` says why. Call it again at will. ``SyncBatchNorm.convert_sync_batchnorm`` belongs before it: it would
    replace the fused module by one that has no activation.
    """
    # judged before anything changes, since swapping one slot must not alter the verdict on another
    fusable = [slot for slot in _slots(module) if slot.why_left is None]
    for slot in fusable:
        assert slot.parent is not None
        activation = slot.parent[slot.position + 1]
        # the same object in a new class, so that whoever holds the batch norm still holds the one in use
        slot.norm.__class__ = BatchNormAct2d
        slot.norm.activation = activation
        slot.parent[slot.position + 1] = nn.Identity().train(activation.training)
    return module


def fuse_report(module: nn.Module) -> list[Verdict]:
    """One row for each batch norm in ``module``, in the order of ``named_modules``."""
    rows = []
    for slot in _slots(module):
        if isinstance(slot.norm, BatchNormAct2d):
            rows.append(Verdict(slot.path, "fused", f"BatchNorm2d + {type(slot.norm.activation).__name__}"))
        else:
            rows.append(Verdict(slot.path, "left", slot.why_left or "nothing speaks against it: call fuse"))
    return rows


class _Slot(NamedTuple):
    path: str
    norm: _BatchNorm
    parent: nn.Sequential | None
    position: int
    why_left: str | None


def _slots(module: nn.Module) -> Iterator[_Slot]:
    """Every batch norm in ``module`` with its place, and the reason why it has to stay as it is."""
    uses = Counter(id(child) for parent in module.modules() for child in parent._modules.values())
    places = {
        id(child): (parent, index)
        for parent in module.modules()
        if isinstance(parent, nn.Sequential)
        for index, child in enumerate(parent)
    }
    for path, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            parent, index = places.get(id(norm), (None, 0))
            why_left = "it stands in no nn.Sequential" if parent is None else _why_left(parent, index, uses[id(norm)])
            yield _Slot(path, norm, parent, index, why_left)


def _why_left(parent: nn.Sequential, index: int, uses: int) -> str | None:
    norm, children = parent[index], list(parent)
    before = children[index - 1] if index > 0 else None
    after = children[index + 1] if index + 1 < len(children) else None
    if type(norm) is not nn.BatchNorm2d:
        return f"{type(norm).__name__} is not BatchNorm2d"
    if type(parent).forward is not nn.Sequential.forward:
        return f"{type(parent).__name__} has a forward of its own"
    if not isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
        return f"it follows {_kind(before)}, not a convolution"
    if type(after) not in (nn.ReLU, nn.LeakyReLU):
        return f"{_kind(after)} follows, not ReLU or LeakyReLU"
    if uses > 1:
        return f"it is shared: {uses} places in the module use it"
    if _hooked(norm):
        return "it has hooks, which would see the activation's output"
    if after is not None and _hooked(after):
        return f"its {_kind(after)} has hooks, which would no longer run"
    return None


def _kind(module: nn.Module | None) -> str:
    return "nothing" if module is None else type(module).__name__


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
