"""Spectral norm of all weights of a critic, forward and backward: what it costs on top of the bare layers.

``weights``: one training update, every W / sigma, and the gradients by W from given ones: the norm's own work, less what the
same weights cost bare. Stock is PyTorch's parametrization, plain and compiled.
``critic``: a whole forward and backward pass at batch 2, less the same pass of the critic without the norm, and stock plain.
``ganfast, apart`` updates u and v once a step beforehand, as the sngan recipe does; the others in the pass.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from ganfast.benches.harness import Case
from ganfast.benches.plain import plain
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.nn import from_torch_state_dict, spectral_norm_, update_spectral_norm
from ganfast.nn.spectral_norm import SpectrallyNormalised, groups

CRITICS = {"resnet-32": ("resnet", 32), "dcgan-64": ("dcgan", 64), "cnn-32": ("cnn", 32)}


def cases(device: torch.device) -> Iterator[Case]:
    for name, (architecture, size) in CRITICS.items():
        torch.manual_seed(0)
        bare = plain(pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(device))
        stock, ours = with_torch(copy.deepcopy(bare)), spectral_norm_(copy.deepcopy(bare), per_call=True)
        ours.load_state_dict(from_torch_state_dict(stock.state_dict()))
        layers = [layer for layer in ours.modules() if isinstance(layer, SpectrallyNormalised)]
        (group,) = groups(ours)
        originals = [layer.weight_original for layer in layers]
        parametrized = [layer.parametrizations.weight.original for layer in parametrized_layers(stock)]
        grads = [torch.randn_like(weight) for weight in originals]
        yield Case(
            "spectral_norm",
            f"weights {name}",
            {
                "bare": backward_of(lambda weights=originals: [w.view_as(w) for w in weights], originals, grads),
                "torch": backward_of(weights_of(stock), parametrized, grads),
                "torch compiled": backward_of(torch.compile(weights_of(stock), dynamic=False), parametrized, grads),
                "ganfast": backward_of(functools.partial(group.normalise, layers, move=True), originals, grads),
            },
            stock=("torch", "torch compiled"),
            bare="bare",
            # 1 reading to iterate, 1 writing of the normalised ones, 3 backward: the count on the op's page
            bytes=5 * sum(weight.numel() * weight.element_size() for weight in originals),
            device=device,
        )
        images = torch.randn(2, 3, size, size, device=device)
        apart = spectral_norm_(copy.deepcopy(bare))
        apart.load_state_dict(ours.state_dict())
        passes = {"bare": bare, "torch": stock, "ganfast": ours, "ganfast, apart": apart}
        yield Case(
            "spectral_norm",
            f"critic {name}",
            {provider: whole_pass(critic, images) for provider, critic in passes.items()},
            stock=("torch",),
            bare="bare",
            device=device,
        )


def with_torch(critic: nn.Module) -> nn.Module:
    for layer in list(critic.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            torch_spectral_norm(layer)
    return critic


def parametrized_layers(critic: nn.Module) -> list[Any]:
    return [layer for layer in critic.modules() if hasattr(layer, "parametrizations")]


def weights_of(critic: nn.Module) -> Callable[[], list[Tensor]]:
    layers = parametrized_layers(critic)
    return lambda: [layer.weight for layer in layers]


def backward_of(weights: Callable[[], list[Tensor]], leaves: list[Tensor], grads: list[Tensor]) -> Callable[[], Any]:
    return lambda: dict(enumerate(torch.autograd.grad(weights(), leaves, grads)))


def gradients(critic: nn.Module) -> dict[str, Tensor | None]:
    """By the names that the parameters have without PyTorch's parametrization."""
    return {name.replace("parametrizations.weight.original", "weight"): p.grad for name, p in critic.named_parameters()}


def whole_pass(critic: nn.Module, images: Tensor) -> Callable[[], dict[str, Tensor | None]]:
    def call() -> dict[str, Tensor | None]:
        critic.zero_grad()
        update_spectral_norm(critic)  # nothing to do, unless it is to be done apart
        critic(images).sum().backward()
        return gradients(critic)

    return call
