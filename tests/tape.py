"""A recorder for the CPU that does what CUDA graphs do: it keeps every operation with the tensors and numbers that it was given,
and does them again in the same memory. What a graph cannot hold, a look at a value from the host, it refuses as CUDA does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::item", "aten::is_nonzero"}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.changed: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function.name().partition(".")[0] in LOOKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function.name()}")
        for argument, value in zip(function._schema.arguments, arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.changed += [(leaf, leaf.clone()) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        for tensor in (keywords or {}).values():
            if isinstance(tensor, Tensor):  # out=
                self.changed.append((tensor, tensor.clone()))
        result = function(*arguments, **(keywords or {}))
        self.done.append((function, arguments, keywords or {}, result))
        return result

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, before in reversed(self.changed):
                tensor.copy_(before)
        self.changed.clear()

    def again(self) -> None:
        with torch.no_grad():
            for function, arguments, keywords, results in self.done:
                given = {id(leaf) for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)}
                found = function(*arguments, **keywords)
                for old, new in zip(tree_leaves(results), tree_leaves(found), strict=True):
                    # what was changed in place, or is a view, stands there already
                    if isinstance(old, Tensor) and id(old) not in given and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class TapeRecorder:
    def __init__(self) -> None:
        self.recorded: list[Tape] = []

    def warm(self, call: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return call()

    def record(self, call: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """What is recorded is not done: everything stands afterwards as it did."""
        tape, draws = Tape(), torch.get_rng_state()
        try:
            with tape:
                logs = call()
        finally:
            tape.undo()
            torch.set_rng_state(draws)
        self.recorded.append(tape)
        return logs, tape.again
