"""One step of Adam over all parameters of a network, alone and with the moving average of the weights behind it.

Stock is ``torch.optim.Adam(fused=True)`` and ``torch._foreach_lerp_``, for parameters in the layout that the network was given.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ganfast.benches.harness import Case
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.optim import Adam

NETWORKS = {"dcgan-64": ("dcgan", 64, 128), "resnet-32": ("resnet", 32, 128)}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SETTINGS = {"lr": 1e-4, "betas": (0.5, 0.999), "fused": True}
PULL = 0.001


def cases(device: torch.device) -> Iterator[Case]:
    for name, (architecture, size, width) in NETWORKS.items():
        networks = pair(architecture, SampleShape(3, size), latent_dim=128, width=width)
        for part, network in zip(("generator", "critic"), networks, strict=True):
            elements = sum(p.numel() for p in network.parameters())
            for layout, format in LAYOUTS.items():
                laid_out = network.to(device).to(memory_format=format)  # type: ignore[call-overload]
                for what, averaged in (("", False), (", averaged", True)):
                    yield Case(
                        "adam",
                        f"{name} {part} {layout}, {elements / 1e6:.1f} M parameters{what}",
                        {
                            provider: stepping(copy.deepcopy(laid_out), kind, averaged)
                            for provider, kind in (("torch", torch.optim.Adam), ("ganfast", Adam))
                        },
                        stock=("torch",),
                        bytes=4 * elements * (9 if averaged else 7),
                        device=device,
                    )


def stepping(network: nn.Module, kind: type[torch.optim.Optimizer], averaged: bool) -> functools.partial[dict[int, Tensor]]:
    torch.manual_seed(0)
    parameters = list(network.parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    averages = [torch.zeros_like(p) for p in parameters] if averaged else []
    return functools.partial(step, kind(parameters, **SETTINGS), parameters, averages)


def step(optimizer: torch.optim.Optimizer, parameters: list[Tensor], averages: list[Tensor]) -> dict[int, Tensor]:
    if averages and isinstance(optimizer, Adam):
        optimizer.follow(dict(zip(parameters, averages, strict=True)), PULL)
    optimizer.step()
    if averages and not isinstance(optimizer, Adam):
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, PULL)
    return dict(enumerate(tensor.detach() for tensor in (*parameters, *averages)))
