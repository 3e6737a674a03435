"""Batch norm with ReLU behind it, forward and backward, on the volumes of DCGAN-64's generator at batch 64.

Stock is PyTorch's batch norm and its ReLU in place, plain and compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.ops.batch_norm import batch_norm_act

SHAPES = ((64, 512, 4, 4), (64, 256, 8, 8), (64, 128, 16, 16), (64, 64, 32, 32))
CONTIGUOUS = SHAPES[2]  # one of them in the other layout as well
EPS = 1e-5


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            yield case(shape, dtype, torch.channels_last, device)
        yield case(CONTIGUOUS, dtype, torch.contiguous_format, device)


def case(shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: torch.device) -> Case:
    torch.compiler.reset()  # or a case too many would run uncompiled
    torch.manual_seed(0)
    x, grad = (torch.randn(shape, device=device).to(dtype).to(memory_format=layout) for _ in range(2))
    weight, bias = torch.ones(shape[1], device=device), torch.zeros(shape[1], device=device)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    forwards = {"torch": stock, "torch compiled": torch.compile(stock, dynamic=False), "ganfast": ours}
    what = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    return Case(
        "batch_norm",
        what + (" contiguous" if layout == torch.contiguous_format else ""),
        {provider: both_ways(forward, inputs, grad) for provider, forward in forwards.items()},
        stock=("torch", "torch compiled"),
        # 3 |x| forward and 5 |x| backward: the count on the op's page
        bytes=8 * x.numel() * x.element_size(),
        dtype=dtype,
        device=device,
    )


def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.relu(F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS), inplace=True)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y: Tensor = batch_norm_act(x, weight, bias, 1, EPS, 0.0, False)[0]
    return y


def both_ways(forward: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], dict[int, Tensor]]:
    return lambda: dict(enumerate(torch.autograd.grad(forward(*inputs), inputs, grad)))
