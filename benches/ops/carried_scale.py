"""Spectral norm of one convolution, forward and backward, on top of the bare layer: W / sigma stored, or its scale carried.

Carried: the convolution reads W, its output is divided by sigma in place, and the gradient by sigma is a dot product of outputs,
so W is neither written forward nor read again backward. That pays where a layer has few outputs and many weights, and is why
ganfast stores: see docs/decisions.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, normalize

from ganfast.benches.harness import Case
from ganfast.ops.spectral_norm import power_iteration, spectral_norm

EPS = 1e-12
# in, size, out, kernel, stride, padding
LAYERS = {
    "dcgan-64 to 4 px": (256, 8, 512, 4, 2, 1),
    "dcgan-64 to 8 px": (128, 16, 256, 4, 2, 1),
    "resnet-32 at 8 px": (128, 8, 128, 3, 1, 1),
    "cnn-32 at 4 px": (256, 4, 512, 3, 1, 1),
}


def cases(device: torch.device) -> Iterator[Case]:
    for name, (channels, size, outputs, kernel, stride, padding) in LAYERS.items():
        for batch in (32, 64):
            torch.manual_seed(0)
            x = torch.randn(batch, channels, size, size, device=device, requires_grad=True)
            w = torch.randn(outputs, channels, kernel, kernel, device=device).mul_(0.05).requires_grad_()
            u, v = (normalize(torch.randn(n, device=device), dim=0) for n in (outputs, w[0].numel()))
            upstream = torch.randn_like(conv2d(x, w, stride=stride, padding=padding).detach())
            passes = {"bare": bare, "carried": carried, "stored (ganfast)": stored}
            yield Case(
                "carried_scale",
                f"{name} batch {batch}",
                {
                    provider: functools.partial(gradients, function, x, w, u, v, stride, padding, upstream)
                    for provider, function in passes.items()
                },
                stock=("carried",),
                bare="bare",
                device=device,
            )


def gradients(function: Callable[..., Tensor], x: Tensor, w: Tensor, *arguments: Any) -> dict[str, Tensor]:
    *others, upstream = arguments
    return dict(zip(("x", "w"), torch.autograd.grad(function(x, w, *others), (x, w), upstream), strict=True))


def bare(x: Tensor, w: Tensor, u: Tensor, v: Tensor, stride: int, padding: int) -> Tensor:
    return conv2d(x, w, stride=stride, padding=padding)


def stored(x: Tensor, w: Tensor, u: Tensor, v: Tensor, stride: int, padding: int) -> Tensor:
    (normalised,), _, _, _ = spectral_norm([w], u, v, [0], 1, EPS, None)
    return conv2d(x, normalised, stride=stride, padding=padding)


def carried(x: Tensor, w: Tensor, u: Tensor, v: Tensor, stride: int, padding: int) -> Tensor:
    new_u, new_v, sigmas = power_iteration([w.detach()], u, v, [0], 1, EPS)
    output: Tensor = _Carried.apply(x, w, new_u, new_v, sigmas[0], stride, padding)
    return output


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, u: Tensor, v: Tensor, sigma: Tensor, stride: int, padding: int) -> Tensor:
        output = conv2d(x, w, stride=stride, padding=padding).div_(sigma)
        ctx.save_for_backward(x, w, u, v, sigma, output)
        ctx.geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, w, u, v, sigma, output = ctx.saved_tensors
        by_x, by_w, _ = torch.ops.aten.convolution_backward(upstream / sigma, x, w, None, *ctx.geometry, [True, True, False])
        c = torch.dot(upstream.flatten(), output.flatten()) / sigma
        by_w.view(len(u), -1).addr_(u * -c, v)
        return by_x, by_w, None, None, None, None, None
