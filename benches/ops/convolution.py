"""The convolutions of DCGAN-64's generator at batch 64, forward and by each of their gradients, against PyTorch's own (oneDNN).

Maps and weights lie channels last, PyTorch's faster layout here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.ops import convolution

BATCH = 64
LAYERS = ((128, 512, 1, 4, 1, 0), (512, 256, 4, 4, 2, 1), (256, 128, 8, 4, 2, 1), (128, 64, 16, 4, 2, 1), (64, 3, 32, 4, 2, 1))


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for layer in LAYERS:
            yield from of_layer(*layer, dtype, device)


def of_layer(
    a: int, b: int, extent: int, kernel: int, stride: int, padding: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Case]:
    torch.manual_seed(0)
    larger = (extent - 1) * stride - 2 * padding + kernel
    shapes = (BATCH, a, extent, extent), (BATCH, b, larger, larger), (a, b, kernel, kernel)
    small, big, weight = (torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last) for shape in shapes)
    steps = stride, padding
    products: dict[str, tuple[str, Callable[..., Tensor], tuple[object, ...]]] = {
        "forward": (
            "transposed_convolve",
            convolution.transposed_convolve_reference,
            (small, weight, None, *steps, larger, larger),
        ),
        "input gradient": ("convolve", convolution.convolve_reference, (big, weight, None, *steps)),
        "weight gradient": (
            "convolution_weight_gradient",
            convolution.convolution_weight_gradient_reference,
            (small, big, kernel, kernel, *steps),
        ),
    }
    for product, (name, reference, arguments) in products.items():
        ways: dict[str, Callable[..., Tensor]] = {"torch": reference}
        for way in ("tiled", *["winograd"] * (stride == 2 and b > 3)):
            ways[way] = getattr(torch.ops.ganfast, f"{way}_{name}")
        yield Case(
            "convolution",
            f"{a} to {b} channels at {extent} x {extent}, {product}, {str(dtype).removeprefix('torch.')}",
            {way: functools.partial(result, call, *arguments) for way, call in ways.items()},
            stock=("torch",),
            flops=2 * BATCH * a * b * (extent * kernel) ** 2,
            dtype=dtype,
            device=device,
        )


def result(call: Callable[..., Tensor], *arguments: object) -> dict[int, Tensor]:
    return {0: call(*arguments)}
