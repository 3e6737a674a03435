"""Small tensors of many layers as parts of one, so that an op takes and a step overwrites all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Joined:
    """The tensors that :meth:`join` was last given, as one tensor.

    With ``own`` they become parts of one in memory of its own, in place: the same tensors, elsewhere. What replaces one of them,
    like ``module.to``, or gives it other memory is seen by its address at the next call, which joins them again. Without ``own``
    they stay where they are and are copied each time. A copy or a pickle starts anew.
    """

    def __init__(self, own: bool) -> None:
        self._own = own
        self._parts: Sequence[Tensor] = ()
        self._whole = torch.empty(0)
        self._addresses: list[int] = []

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """All elements of ``parts``, one tensor after the other, shape (n,)."""
        self._parts = parts
        if self._copies():
            return torch.cat([part.flatten() for part in parts])
        if [part.data_ptr() for part in parts] != self._addresses:
            with torch.inference_mode(False):
                self._whole = torch.cat([part.detach().flatten() for part in parts])
                for part, place in zip(parts, self._split(self._whole), strict=True):
                    part.data = place
            self._addresses = [part.data_ptr() for part in parts]
        return self._whole

    def put(self, values: Tensor) -> None:
        """``values`` (n,) into the parts, where they are."""
        if self._copies():
            torch._foreach_copy_(list(self._parts), self._split(values))
        else:
            self._whole.copy_(values)

    def _copies(self) -> bool:
        """Where nothing is owned, and where tensors have no addresses: in compiled code, and in torch.func's transforms."""
        return not self._own or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()

    def _split(self, values: Tensor) -> list[Tensor]:
        pieces = values.split([part.numel() for part in self._parts])
        return [piece.view(part.shape) for piece, part in zip(pieces, self._parts, strict=True)]

    def __reduce__(self) -> tuple[type[Joined], tuple[bool]]:
        return Joined, (self._own,)
