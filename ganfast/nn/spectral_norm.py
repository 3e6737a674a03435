"""Spectral norm as a property of a network's layers (Miyato et al. 2018).

:func:`spectral_norm_` gives each layer a class of its own in which ``layer.weight`` reads as W / sigma, while the parameter,
its name and its ``state_dict`` key stay ``weight``; the singular vectors are the buffers ``weight_u`` and ``weight_v``. Hooks,
``deepcopy``, pickling, ``functional_call`` and optimizers that hold the parameter work as before.

u and v are moved by :func:`update_spectral_norm`, which a training step calls once before the critic's passes. PyTorch moves
them in every call of a layer instead, and so does ``per_call=True``; a layer that a pass leaves out is moved along with the
others there. In evaluation mode they stay where they are.

All weights of the module that was given to :func:`spectral_norm_` form one :class:`Group`: a pair of hooks around the module's
forward pass has them normalised by one call, in the type that autocast would cast them to. A layer that is used outside of
that pass is normalised alone, when its weight is read.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from ganfast.errors import InvalidValue
from ganfast.nn.joined import Joined
from ganfast.ops.spectral_norm import matrix, power_iteration, spectral_norm

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_WARM_UP = 15  # power iterations at construction, as many as PyTorch's parametrization does

# endings of state_dict keys for the weight, u and v: here, in PyTorch's parametrization, and in its older hook
_OURS = ("weight", "weight_u", "weight_v")
_PARAMETRIZATION = ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v")
_HOOK = ("weight_orig", "weight_u", "weight_v")


class SpectrallyNormalised(nn.Module):
    """Mixed in before a layer's class: ``weight`` is the parameter of that name over its largest singular value.

    ``weight_original`` is the parameter itself, as ``named_parameters`` and ``state_dict`` give it.
    """

    weight_u: Tensor
    weight_v: Tensor
    spectral_dim: int
    spectral_iterations: int
    spectral_per_call: bool
    spectral_eps: float

    @property
    def weight(self) -> Tensor:
        handed: _Handed | None = self.__dict__.get("weight_handed")
        moves = self.spectral_per_call and self.training and not _recomputing()
        if handed is None:
            return self._weight_alone(moves)
        again, handed.read = handed.read, True
        if again and moves:  # the layer's second call in this pass
            return self._weight_alone(move=True)
        return handed.weight if handed.fits(self) else self._weight_alone(move=False)

    def _weight_alone(self, move: bool) -> Tensor:
        return Group([self]).normalise([self], move=move)[0]

    @property
    def weight_original(self) -> Tensor:
        return self._parameters["weight"]  # type: ignore[return-value]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SpectrallyNormalised:
        vectors = {name: self._buffers[name] for name in ("weight_u", "weight_v")}
        super()._apply(fn, recurse)
        for name, before in vectors.items():
            after = self._buffers[name]
            # module.half() and module.bfloat16() mean the weights: sigma stays float32
            if before is not None and after is not None and after.dtype.itemsize < 4:
                self._buffers[name] = before.to(after.device, torch.float32)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "weight_handed"}

    def _replicate_for_data_parallel(self) -> Any:
        raise InvalidValue(
            "spectral norm does not work in nn.DataParallel, whose replicas share hooks: use DistributedDataParallel"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (type(self).__bases__[1],), self.__getstate__()


class _Handed:
    """A weight that a pass normalised for a layer beforehand, and the state of affairs that it was made for."""

    def __init__(self, layer: SpectrallyNormalised, weight: Tensor) -> None:
        self.weight = weight
        self.read = False
        self._state = _state_of_affairs(layer)

    def fits(self, layer: SpectrallyNormalised) -> bool:
        if torch.compiler.is_compiling():
            return True
        original = layer.weight_original
        recorded = self.weight.requires_grad or not (original.requires_grad and torch.is_grad_enabled())
        # hooks that keep what the layer saves, as activation checkpoints do, must see the normalisation too
        kept = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
        return recorded and not kept and self._state == _state_of_affairs(layer)


def _state_of_affairs(layer: SpectrallyNormalised) -> Any:
    """What a weight is good for: this thread, this autocast, and these values."""
    if torch.compiler.is_compiling():
        return None
    original = layer.weight_original
    version = None if original.is_inference() else original._version
    return threading.get_ident(), _autocast_type(layer), version


def _recomputing() -> bool:
    """Whether this is a checkpoint's second forward pass, in the middle of a backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Group:
    """The layers that one call of :func:`spectral_norm_` found: hooks before and after the forward pass of its module."""

    def __init__(self, layers: Sequence[SpectrallyNormalised]) -> None:
        self.layers = layers
        self._vectors: dict[Any, tuple[Joined, Joined]] = {}  # u and v of the layers that go through one call

    def join(self) -> None:
        """Give u and v of all layers memory in common, in which they stay while the layers do."""
        for alike in _alike(self.layers):
            if len(alike) > 1:
                self._vectors[alike] = Joined(own=True), Joined(own=True)
                _join(*self._vectors[alike], alike)

    def before(self, module: nn.Module, args: Any) -> None:
        for move in (True, False):
            layers = [layer for layer in self.layers if (layer.spectral_per_call and layer.training) is move]
            for layer, weight in zip(layers, self.normalise(layers, move=move), strict=True):
                layer.__dict__["weight_handed"] = _Handed(layer, weight)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        for layer in self.layers:
            layer.__dict__["weight_handed"] = None

    def normalise(self, layers: Sequence[SpectrallyNormalised], *, move: bool) -> list[Tensor]:
        """Every layer's weight over its sigma: for the u and v that are there, or that an update of them gives."""
        found: dict[SpectrallyNormalised, Tensor] = {}
        for alike in _alike(layers):
            us, vs, arguments, first = *self._gathered(alike), alike[0]
            n_iterations = first.spectral_iterations if move else 0
            outputs, u, v, _ = spectral_norm(*arguments, n_iterations, first.spectral_eps, _autocast_type(first))
            if move:
                us.put(u)
                vs.put(v)
            found.update(zip(alike, outputs, strict=True))
        return [found[layer] for layer in layers]

    def update(self, layers: Sequence[SpectrallyNormalised]) -> None:
        """One update of every layer's u and v."""
        for layer in layers:
            layer.__dict__["weight_handed"] = None  # of a pass that was interrupted
        for alike in _alike(layers):
            us, vs, arguments, first = *self._gathered(alike), alike[0]
            u, v, _ = power_iteration(*arguments, first.spectral_iterations, first.spectral_eps)
            us.put(u)
            vs.put(v)

    def _gathered(self, alike: tuple[SpectrallyNormalised, ...]) -> tuple[Joined, Joined, tuple[Any, ...]]:
        """Where u and v of the layers are put, and weights, u, v and dims as the ops take them."""
        us, vs = self._vectors.get(alike) or (Joined(own=False), Joined(own=False))
        weights, dims = [layer.weight_original for layer in alike], [layer.spectral_dim for layer in alike]
        return us, vs, (weights, *_join(us, vs, alike), dims)


@functools.cache
def _class_for(base: Any) -> type[Any]:
    return type(f"SpectralNorm{base.__name__}", (SpectrallyNormalised, base), {"__module__": __name__})


def _revive(base: Any) -> nn.Module:
    """The first half of unpickling and of ``deepcopy``; the state follows."""
    layer: nn.Module = object.__new__(_class_for(base))
    return layer


def spectral_norm_(module: ModuleT, *, n_iterations: int = 1, per_call: bool = False, eps: float = 1e-12) -> ModuleT:
    """Normalise every Linear, Conv, ConvTranspose (1d to 3d) and Embedding in ``module``, in place, and return it.

    The matrix whose norm is taken has one row per output channel (dim 1 of a transposed convolution, dim 0 otherwise), as in
    PyTorch. u and v start from torch's default generator and 15 power iterations; each update adds ``n_iterations``. Layers that
    are normalised already are left as they are. Initialise weights before: afterwards ``layer.weight`` is the normalised one.
    Raises InvalidValue, before anything is changed, for options out of range, and if there is no such layer or one is lazy, is
    parametrized already or has a weight in another than a floating point type.
    """
    if not isinstance(n_iterations, int) or n_iterations < 1:
        raise InvalidValue(f"expected a whole number n_iterations >= 1, got {n_iterations}")
    if not (math.isfinite(eps) and eps >= 0):
        raise InvalidValue(f"expected eps >= 0, got {eps}")
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Embedding | _ConvNd)}
    if not found:
        raise InvalidValue(f"{type(module).__name__} has no Linear, Conv, ConvTranspose or Embedding to normalise")
    layers = {name: layer for name, layer in found.items() if not isinstance(layer, SpectrallyNormalised)}
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        where = f"layer {name!r} ({type(layer).__name__})"
        if weight is None:
            raise InvalidValue(f"{where} has no weight parameter of its own: remove its other parametrization first")
        if is_lazy(weight):
            raise InvalidValue(f"{where} is not initialised yet: run one batch through the module first")
        if not weight.is_floating_point():
            raise InvalidValue(f"{where} has a weight in {weight.dtype}: expected a floating point type")
    for layer in layers.values():
        _normalise_layer(layer, n_iterations, per_call, eps)
    if layers:
        group = Group([layer for layer in layers.values() if isinstance(layer, SpectrallyNormalised)])
        group.join()
        module.register_forward_pre_hook(group.before)
        module.register_forward_hook(group.after, always_call=True)
    return module


def update_spectral_norm(module: nn.Module) -> None:
    """One update of u and v for every normalised layer of ``module`` in training mode, as one group.

    Call it once per optimizer step, before the critic's forward passes; passes made earlier keep the values they used for
    their backward. Layers with ``per_call`` update themselves and are left out, and so is everything in evaluation mode.
    """
    left = {layer for layer in module.modules() if isinstance(layer, SpectrallyNormalised)}
    for group in (*groups(module), Group(list(left))):
        mine = [layer for layer in group.layers if layer in left]
        left.difference_update(mine)
        group.update([layer for layer in mine if layer.training and not layer.spectral_per_call])


def groups(module: nn.Module) -> Iterator[Group]:
    """The groups whose hooks hang on ``module`` or in it."""
    for part in module.modules():
        for hook in part._forward_pre_hooks.values():
            group = getattr(hook, "__self__", None)
            if isinstance(group, Group):
                yield group


def to_torch_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of a normalised module in the names of PyTorch's ``parametrizations.spectral_norm``."""
    return _renamed(state, _OURS, _PARAMETRIZATION, mark="weight_u")


def from_torch_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: from PyTorch's ``parametrizations.spectral_norm``, or from its older ``nn.utils.spectral_norm``."""
    state = _renamed(state, _PARAMETRIZATION, _OURS, mark=_PARAMETRIZATION[0])
    return _renamed(state, _HOOK, _OURS, mark=_HOOK[0])


def _renamed(state: Mapping[str, Tensor], old: tuple[str, ...], new: tuple[str, ...], mark: str) -> dict[str, Tensor]:
    """``state`` with the three names of each layer that has the key ``mark`` changed from ``old`` to ``new``."""
    renamed = dict(state)
    for key in state:
        if ("." + key).endswith("." + mark):
            prefix = key.removesuffix(mark)
            for name in old:
                if prefix + name not in state:
                    raise InvalidValue(f"the state_dict has {key!r} of a spectral norm, and no {prefix + name!r}")
            tensors = [renamed.pop(prefix + name) for name in old]
            renamed.update(zip((prefix + name for name in new), tensors, strict=True))
    return renamed


def _normalise_layer(layer: nn.Module, n_iterations: int, per_call: bool, eps: float) -> None:
    dim = 1 if isinstance(layer, _ConvTransposeNd) else 0
    weight = layer.get_parameter("weight").detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    u, v = (
        nn.functional.normalize(torch.randn(size, device=weight.device, dtype=dtype), dim=0) for size in matrix(weight, dim).shape
    )
    u, v, _ = power_iteration([weight], u, v, [dim], _WARM_UP, eps)
    layer.register_buffer("weight_u", u)
    layer.register_buffer("weight_v", v)
    layer.__dict__.update(spectral_dim=dim, spectral_iterations=n_iterations, spectral_per_call=per_call, spectral_eps=eps)
    base: Any = type(layer)
    layer.__class__ = _class_for(base)


def _join(us: Joined, vs: Joined, layers: Sequence[SpectrallyNormalised]) -> tuple[Tensor, Tensor]:
    """u and v of all layers."""
    buffers: list[Any] = [layer._buffers for layer in layers]
    return us.join([of_layer["weight_u"] for of_layer in buffers]), vs.join([of_layer["weight_v"] for of_layer in buffers])


def _alike(layers: Sequence[SpectrallyNormalised]) -> Iterable[tuple[SpectrallyNormalised, ...]]:
    """The layers that one call of an op can take together."""
    found: defaultdict[Any, list[SpectrallyNormalised]] = defaultdict(list)
    for layer in layers:
        weight = layer.weight_original
        cast = not isinstance(layer, nn.Embedding)
        found[layer.spectral_iterations, layer.spectral_eps, weight.dtype, weight.device, cast].append(layer)
    return map(tuple, found.values())


def _autocast_type(layer: SpectrallyNormalised) -> torch.dtype | None:
    """The type that autocast would cast the layer's weight to: written at once, it costs no pass of its own."""
    weight = layer.weight_original
    device = weight.device.type
    if weight.dtype != torch.float32 or isinstance(layer, nn.Embedding) or not torch.amp.is_autocast_available(device):
        return None
    if not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
