"""DCGAN-64's generator at batch 64, fused against every stock mode: a training step's forward and backward, and inference.

Stock is eager and compiled, contiguous and with channels last; under bfloat16 autocast and in float32.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ganfast.benches.harness import Case
from ganfast.benches.plain import plain
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.nn import fuse

BATCH, LATENT = 64, 128
LAYOUTS = {"": torch.contiguous_format, " channels-last": torch.channels_last}


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        networks = generators(device)
        z = torch.randn(BATCH, LATENT, device=device)
        # at batch 64 a convolution's multiplications and additions, three times for a step
        flops = 2 * BATCH * sum(i * o * (extent * 4) ** 2 for i, o, extent in LAYERS)
        for name, make, count in (("forward + backward", training, 3 * flops), ("inference", inference, flops)):
            yield Case(
                "generator",
                f"dcgan-64 {name}, {str(dtype).removeprefix('torch.')}",
                {provider: make(network, z, dtype) for provider, network in networks.items()},
                stock=tuple(provider for provider in networks if provider.startswith("torch")),
                flops=count,
                dtype=dtype,
                device=device,
            )


LAYERS = ((128, 512, 1), (512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32))


def generators(device: torch.device) -> Mapping[str, nn.Module]:
    torch.compiler.reset()
    torch.manual_seed(0)
    network = pair("dcgan", SampleShape(3, 64), latent_dim=LATENT)[0].to(device)
    found: dict[str, nn.Module] = {}
    for suffix, layout in LAYOUTS.items():
        laid_out = network.to(memory_format=layout)  # type: ignore[call-overload]
        found["torch" + suffix] = plain(laid_out)
        found["torch compiled" + suffix] = torch.compile(plain(laid_out), dynamic=False)
    found["ganfast"] = fuse(copy.deepcopy(laid_out))
    return found


def training(network: nn.Module, z: Tensor, dtype: torch.dtype) -> Callable[[], dict[int, Tensor]]:
    torch.manual_seed(1)
    upstream = torch.randn(BATCH, 3, 64, 64, device=z.device).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())

    def step() -> dict[int, Tensor]:
        network.train()
        for p in parameters:
            p.grad = None
        with autocast(z, dtype):
            y = network(z)
        y.backward(upstream.to(y.dtype))  # as a training loop does
        return {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}

    return step


def inference(network: nn.Module, z: Tensor, dtype: torch.dtype) -> Callable[[], dict[int, Tensor]]:
    def sample() -> dict[int, Tensor]:
        network.eval()
        with torch.inference_mode(), autocast(z, dtype):
            return {0: network(z)}

    return sample


def autocast(z: Tensor, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(z.device.type, dtype=torch.bfloat16) if dtype == torch.bfloat16 else contextlib.nullcontext()
