"""What lies between two batch norms of DCGAN-64 at batch 64, forward and backward: batch norm, activation, a convolution, and the
statistics of the next batch norm, as ours hands them on.

Stock is PyTorch's batch norm, activation in place and convolution, channels last, plain and compiled, and the statistics by
``torch.var_mean``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.ops.conv_norm import conv_norm

BATCH, EPS = 64, 1e-5
# inputs, outputs, extent of the input, transposed: the generator's with ReLU, then the critic's with LeakyReLU
LAYERS = ((512, 256, 4, True), (256, 128, 8, True), (128, 64, 16, True), (64, 3, 32, True))
LAYERS += ((128, 256, 16, False), (256, 512, 8, False))
TYPES = (torch.float32, torch.bfloat16)


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in TYPES:
        for layer in LAYERS:
            yield case(*layer, dtype, device)


def case(inputs: int, outputs: int, extent: int, transposed: bool, dtype: torch.dtype, device: torch.device) -> Case:
    torch.compiler.reset()  # or a case too many would run uncompiled
    torch.manual_seed(0)
    slope, last = (0.0 if transposed else 0.2), torch.channels_last
    ends = (inputs, outputs) if transposed else (outputs, inputs)
    shapes = (BATCH, inputs, extent, extent), (*ends, 4, 4)
    x, weight = (torch.randn(shape, device=device).to(dtype).to(memory_format=last) for shape in shapes)
    gamma, beta = torch.ones(inputs, device=device), torch.zeros(inputs, device=device)
    variables = [t.requires_grad_() for t in (x, weight, gamma, beta)]
    larger = 2 * extent if transposed else extent // 2
    grad = torch.randn(BATCH, outputs, larger, larger, device=device).to(dtype).to(memory_format=last)
    var, mean = torch.var_mean(x.detach().float(), (0, 2, 3), correction=0)

    def ours() -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = conv_norm(
            x, weight, None, mean[None], var[None], gamma, beta, EPS, slope, transposed, 2, 1, 1
        )
        return found

    def stock(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        a = F.leaky_relu(F.batch_norm(x, None, None, gamma, beta, True, 0.1, EPS), slope, inplace=True)
        y = (F.conv_transpose2d if transposed else F.conv2d)(a, weight, None, 2, 1)
        with torch.no_grad():
            return y, *torch.var_mean(y.float(), (0, 2, 3), correction=0)

    compiled = torch.compile(stock, dynamic=False)
    forwards: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "torch": lambda: stock(*variables),
        "torch compiled": lambda: compiled(*variables),
        "ganfast": ours,
    }
    return Case(
        "conv_norm",
        f"{inputs} to {outputs} channels at {extent} x {extent}, {str(dtype).removeprefix('torch.')}",
        {provider: both_ways(forward, variables, grad) for provider, forward in forwards.items()},
        stock=("torch", "torch compiled"),
        # the count on the op's page, and the weight twice and its gradient
        bytes=(7 * x.numel() + 3 * grad.numel() + 3 * weight.numel()) * x.element_size(),
        flops=3 * 2 * BATCH * inputs * outputs * (4 * min(extent, larger)) ** 2,
        dtype=dtype,
        device=device,
    )


def both_ways(
    forward: Callable[[], tuple[Tensor, ...]], variables: list[Tensor], grad: Tensor
) -> Callable[[], dict[int, Tensor]]:
    return lambda: dict(enumerate(torch.autograd.grad(forward()[0], variables, grad)))
