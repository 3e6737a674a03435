"""What a critic makes of images on its way to a score (Radford et al. 2016, section 5.1).

Every activated map of every convolutional layer, max-pooled to 4 x 4, flattened, side by side. Maps are found where they come
into being, among the operations of a forward pass: an activation is one whether it is a module or a function, and whatever the
critic is made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast.engine.samples import evaluating
from ganfast.errors import InvalidValue, near
from ganfast.ops import batch_norm, convolution, tanh
from ganfast.recipe import Recipe

GRID = 4  # maps are pooled to this many values a side, smaller ones stay as they are
_NAMES = ("relu", "leaky_relu", "_prelu_kernel", "elu", "gelu", "silu", "mish", "softplus", "hardtanh", "hardswish", "tanh")
_ACTIVATIONS = {
    getattr(torch.ops.aten, name + ending)
    for name in _NAMES
    for ending in ("", "_")
    if hasattr(torch.ops.aten, name + ending)  # some have no form in place
}


def critic_of(recipe: Recipe, networks: Mapping[str, nn.Module], name: str | None = None) -> str:
    """The name of the network that judges images: the one that is trained, has convolutions and makes no samples.

    ``name`` chooses where there are several. Raises InvalidValue where there is none, where several could be meant, where the
    one that is named is none of them, and where it judges an image together with its class, which it would give away.
    """
    trained = dict.fromkeys(network for phase in recipe.phases for network in phase.updates)
    critics = [network for network in trained if network not in recipe.ema and _convolves(networks[network])]
    if not critics or (name is None and len(critics) > 1):
        what = f"has several: {', '.join(critics)}; name one" if critics else f"has none; its networks are {', '.join(networks)}"
        raise InvalidValue(f"expected a recipe with a critic made of 2-D convolutions, and {recipe.name!r} {what}")
    name = critics[0] if name is None else name
    if name not in critics:
        raise InvalidValue(f"recipe {recipe.name!r} has no critic {name!r}{near(name, critics)}")
    parameters = inspect.signature(networks[name].forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1:
        raise InvalidValue(
            f"expected a critic that judges images alone; {name!r} of recipe {recipe.name!r} takes {', '.join(needed)}, "
            "so its features would tell the class that they are to predict"
        )
    return name


def layer_features(critic: nn.Module, images: Tensor) -> list[Tensor]:
    """Pooled maps (N, C, 4, 4) of images (N, C, H, W) in [-1, 1], one for each activation of a map, in order.

    Of a critic in evaluation mode, in float32. Raises InvalidValue where no activation of a map is seen.
    """
    seen = _Maps()
    with torch.no_grad(), evaluating({"critic": critic}), torch.autocast(images.device.type, enabled=False), seen:
        critic(images)
    if not seen.maps:
        raise InvalidValue(f"expected a critic with activations of maps, and {type(critic).__name__} has none that are known")
    return seen.maps


class _Maps(TorchDispatchMode):
    """Pools the result of each activation of a map (N, C, H, W), before anything else may overwrite it."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        ours = any(page.activates(func, args) for page in (convolution, batch_norm, tanh))
        if (func.overloadpacket in _ACTIVATIONS or ours) and output.dim() == 4:
            height, width = output.shape[2:]
            self.maps.append(adaptive_max_pool2d(output.float(), (min(GRID, height), min(GRID, width))))
        return output


def _convolves(network: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) for module in network.modules())
