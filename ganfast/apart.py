"""Whether a module keeps the samples of a batch apart: operation by operation, and as a whole.

One row of the batch must not reach another row of what is computed, by any way: not under no_grad either, nor through a detached
tensor, nor through a number that the host looks at. So :func:`watched` sees every operation of a call below autograd. What was
made of the batch may only go through operations that are known to keep rows apart, where every row is treated alike.

What is no operation, such as the length of the batch, is left in the numbers that operations get, and in their sequence. These
are a call's fingerprint. A call with one of the fingerprints of :func:`tried` does what a copy of the module did, which had the
same scores in one batch as in three.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ganfast.tangent import Unreadable

aten = torch.ops.aten

# Operations by what keeps rows apart in them: nothing but that the first axis stays the first axis of samples,
_ROWS = {
    aten.alias,
    aten.clone,
    aten.detach,
    aten._to_copy,
    aten._unsafe_view,
    aten.view,
    aten.squeeze,
    aten.unsqueeze,
}
# that the dimensions they work along, by place among the arguments, are others,
_ALONG = {
    **dict.fromkeys([aten.sum, aten.mean, aten.cat, aten.slice, aten.select, aten.amax, aten.amin, aten.flip], (1,)),
    aten.transpose: (1, 2),
}
# that the maps (N, C, ...) are in a batch,
_MAPS = {
    **dict.fromkeys([aten.avg_pool2d, aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d], 4),
    **dict.fromkeys([aten.reflection_pad2d, aten.replication_pad2d, aten.upsample_nearest2d, aten.upsample_bilinear2d], 4),
    **dict.fromkeys([aten.reflection_pad1d, aten.replication_pad1d, aten.upsample_nearest1d], 3),
}
# or that nothing but this argument is made of the batch.
_FACTOR = {aten.convolution: 0, aten.mm: 0, aten.addmm: 1, aten.embedding: 1}


def watched(call: Callable[[], Tensor], *batch: Tensor) -> tuple[Tensor, int]:
    """What ``call`` returns, and its fingerprint. ``batch`` are the tensors (N, ...) whose rows it must keep apart.

    Raises Unreadable where it is not known to, and where it fails, as what is made for N samples may do with more.
    """
    watch = _Operations(batch)
    try:
        with _Calls(watch), watch:
            output = call()
    except Exception as error:
        raise Unreadable(f"it fails for a batch of 3N: {error}") from error
    if watch.tied is not None:
        raise Unreadable(f"{watch.tied} is not known to keep samples apart")
    if not watch.carries(output):
        raise Unreadable("what became of the batch was lost")
    return output, hash(tuple(watch.seen))


def tried(critic: nn.Module, scores: Callable[..., Tensor], batch: Tensor, conditions: Sequence[Tensor]) -> set[int]:
    """The fingerprints of a copy's calls with ``batch`` (3N, ...), which has the same scores for its thirds each on its own.

    ``scores(critic, batch, conditions)`` calls it, twice, because some things are made in a first call. Scores are compared in
    float32 or float64 and without autocast, where a tie shows in the leading digits and rounding in the last; and with other
    weights, so that no gate at zero hides one. Raises Unreadable where they differ, and where anything fails.
    """
    n, wide = len(batch) // 3, torch.promote_types(batch.dtype, torch.float32)
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[batch.device] if batch.is_cuda else []):
            twin = copy.deepcopy(critic)
            fresh = [batch.detach().clone().requires_grad_() for _ in range(2)]  # autocast keeps the casts of leaves, too
            seen = {watched(lambda x=x: scores(twin, x, conditions), x, *conditions)[1] for x in fresh}  # type: ignore[misc]
            twin = twin.to(torch.promote_types(next(twin.parameters(), batch).dtype, torch.float32))
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.add_(0.1 * torch.rand_like(parameter))
            with torch.autocast(batch.device.type, enabled=False):
                points = batch.detach().to(wide).requires_grad_()
                whole = scores(twin, points, conditions).detach()
                parts = [
                    scores(twin, points[i : i + n], [condition[i : i + n] for condition in conditions]).detach()
                    for i in (0, n, 2 * n)
                ]
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"to try a copy of it failed: {error}") from error
    near = torch.finfo(wide).eps ** 0.5
    if not torch.allclose(torch.cat(parts), whole, rtol=near, atol=near * float(whole.abs().max())):
        raise Unreadable("its scores depend on the other samples of a batch")
    return seen


class _Operations(TorchDispatchMode):
    """``tied`` is the first operation that is not known to keep rows apart, ``seen`` the fingerprint."""

    def __init__(self, batch: Sequence[Tensor]) -> None:
        super().__init__()
        self.rows = len(batch[0])
        self.tied: str | None = None
        self.seen: list[Any] = []
        self.asleep = False
        self._made_of_it: dict[int, StorageWeakRef] = {}
        self.mark(*batch)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.asleep:
            return out
        given = tree_leaves((args, kwargs))
        tensors = [x for x in given if isinstance(x, Tensor)]
        mine = [x for x in tensors if self.carries(x)]
        if mine or func.overloadpacket is not aten._to_copy:  # autocast keeps the casts of weights from call to call
            self.seen += [func, *((x.shape, x.dtype) if isinstance(x, Tensor) else repr(x) for x in given)]
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.tied = self.tied or str(func)
        if mine:
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            if not results or not self._apart(func.overloadpacket, func.tags, args, tensors, mine, results):
                self.tied = self.tied or str(func)
            self.mark(*results)
        return out

    def mark(self, *tensors: Tensor) -> None:
        """As made of the batch: by their memory, which views and ``.data`` share."""
        for x in tensors:
            reference = StorageWeakRef(x.untyped_storage())  # while which lives no other storage has its ``cdata``
            self._made_of_it[reference.cdata] = reference

    def carries(self, *tensors: Tensor) -> bool:
        return any(x.untyped_storage()._cdata in self._made_of_it for x in tensors)

    def _apart(self, op: Any, tags: Any, args: Any, tensors: list[Tensor], mine: list[Tensor], results: list[Tensor]) -> bool:
        if any(x.shape[:1] != (self.rows,) for x in (*mine, *results)):
            return False
        dim = max(x.dim() for x in (*mine, *results))
        if op in _FACTOR:
            factor = args[_FACTOR[op]]
            if len(mine) > 1 or mine[0] is not factor:
                return False
            if op is aten.convolution:
                return factor.dim() == args[1].dim()
            return op is not aten.addmm or args[0].dim() < 2 or len(args[0]) == 1
        # a constant with a row for each sample does not treat them alike
        if any(x.dim() == dim and x.shape[0] == self.rows for x in tensors if not self.carries(x)):
            return False
        if torch.Tag.pointwise in tags or op is aten.expand:  # the axes of fewer dimensions are the last ones
            return all(x.dim() == dim for x in (*mine, *results))
        if op in _ALONG:
            axes = [axis for place in _ALONG[op] for axis in _integers(args[place] if len(args) > place else 0)]
            return bool(axes) and all(axis % dim for axis in axes)
        if op is aten.permute:
            return args[1][0] % dim == 0
        return op in _ROWS or _MAPS.get(op) == dim


class _Calls(TorchFunctionMode):
    """What is seen above autograd alone.

    A gradient's hook would be called once, and not for each of three passes. A one-hot code is one operation that keeps rows
    apart; what it is made of is not.
    """

    def __init__(self, watch: _Operations) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.register_hook:
            self._watch.tied = "a hook"
        self._watch.asleep = coded = func is F.one_hot and self._watch.carries(*args[:1])
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self._watch.asleep = False
        if coded:
            self._watch.mark(out)
        return out


def _integers(value: Any) -> Sequence[int]:
    return value if isinstance(value, list | tuple) else (value,)
