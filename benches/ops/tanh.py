"""tanh forward and backward, of the images of DCGAN-64's generator at batch 64. Stock is PyTorch's, plain and compiled."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ganfast.benches.harness import Case
from ganfast.benches.ops.batch_norm import both_ways
from ganfast.ops.tanh import tanh

SHAPE = (64, 3, 64, 64)


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        torch.compiler.reset()
        torch.manual_seed(0)
        x, grad = (torch.randn(SHAPE, device=device).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
        forwards = {"torch": torch.tanh, "torch compiled": torch.compile(torch.tanh, dynamic=False), "ganfast": tanh}
        yield Case(
            "tanh",
            f"{'x'.join(map(str, SHAPE))} {str(dtype).removeprefix('torch.')}",
            {provider: both_ways(forward, [x.requires_grad_()], grad) for provider, forward in forwards.items()},
            stock=("torch", "torch compiled"),
            bytes=5 * x.numel() * x.element_size(),  # the count on the op's page
            dtype=dtype,
            device=device,
        )
