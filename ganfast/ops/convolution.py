r"""Convolutions in two dimensions and their gradients, which are each other's.

A convolution lies between a small map s (N, A, h, w) and a big one b (N, B, H, W), with a weight W (A, B, kernel) whose tap t
ties s[i] to b[stride i - padding + t], in each of the two axes:

    convolve              s[n, a, i] = sum over t, c of W[a, c, t] b[n, c, stride i - padding + t]
    transposed_convolve   b[n, c, y] = sum over a and i, t with stride i - padding + t = y of W[a, c, t] s[n, a, i]
    weight gradient       W[a, c, t] = sum over n, i of s[n, a, i] b[n, c, stride i - padding + t]

The first is ``nn.Conv2d``, whose weight is (C_out, C_in, kernel), the second ``nn.ConvTranspose2d``, whose weight is
(C_in, C_out, kernel): without groups and dilation, with one stride and one padding for both axes. Each is linear in its two
factors, and its gradient by one of them is another of the three, so they can be differentiated any number of times. ``height``
and ``width`` are those of what the others do not determine: of b, and of the kernel.

Factors are float32 or bfloat16, both the same (in bfloat16 with an even number of channels to sum over); sums are float32.
Results have the factors' dtype and lie channels last, and factors that lie otherwise are copied first. Every number is one sum
in a fixed order, so results do not depend on the number of threads.

:func:`convolution` is what modules call. On the CPU, PyTorch's own convolution (oneDNN) and the kernel of this op each win for
some shapes, so each of the three products is measured once for each shape (:mod:`ganfast.tuning`), unless ``GANFAST_CPU`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ganfast import tuning
from ganfast.ops import library
from ganfast.ops.library import Differentiable, Op, below_autograd, register

Grads = tuple[Tensor | None, ...]


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, output_padding: int | None = None
) -> Tensor:
    """``nn.Conv2d`` of x (N, C_in, H, W), or, with an ``output_padding``, ``nn.ConvTranspose2d``."""
    if output_padding is None:
        found: Tensor = convolve(x, weight, bias, stride, padding)
        return found
    sizes = ((x.shape[i] - 1) * stride - 2 * padding + weight.shape[i] + output_padding for i in (2, 3))
    found = transposed_convolve(x, weight, bias, stride, padding, *sizes)
    return found


def serves(x: Tensor, weight: Tensor, transposed: bool) -> bool:
    """Whether a kernel of this op computes with these, and what it gives has the layout that PyTorch's own result would have."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    summed = weight.shape[0] if transposed else weight.shape[1] * weight.shape[3]
    return library.CPU == "cpp" and x.device.type == "cpu" and x.dim() == 4 and last and _fits(x, weight, summed)


# ---- the three products by PyTorch's own operations


def convolve_reference(big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """s (N, A, h, w), with bias (A,) added."""
    return _last(aten.convolution(big, weight, _in(big, bias), [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1))


def transposed_convolve_reference(
    small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int
) -> Tensor:
    """b (N, B, height, width), with bias (B,) added."""
    least = [(small.shape[i] - 1) * stride - 2 * padding + weight.shape[i] for i in (2, 3)]
    more = [height - least[0], width - least[1]]
    return _last(aten.convolution(small, weight, _in(small, bias), [stride] * 2, [padding] * 2, [1, 1], True, more, 1))


def convolution_weight_gradient_reference(
    small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int
) -> Tensor:
    """W (A, B, height, width)."""
    weight = torch.empty(
        (small.shape[1], big.shape[1], height, width), dtype=small.dtype, device=small.device, memory_format=torch.channels_last
    )
    steps = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
    return _last(aten.convolution_backward(small, big, weight, None, *steps, [False, True, False])[1])


aten = torch.ops.aten


def _in(x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


# ---- shapes


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _convolve_fake(big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    h, w = ((big.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3))
    return _empty(big, big.shape[0], weight.shape[0], h, w)


def _transposed_fake(
    small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int
) -> Tensor:
    return _empty(small, small.shape[0], weight.shape[1], height, width)


def _weight_fake(small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
    return _empty(small, small.shape[1], big.shape[1], height, width)


# ---- gradients


def _bias_gradient(grad: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else grad.sum((0, 2, 3), dtype=torch.promote_types(grad.dtype, torch.float32)).to(bias.dtype)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(big, weight, bias)
        ctx.steps = stride, padding
        return _below(convolve, big, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        big, weight, bias = ctx.saved_tensors
        of_big, of_weight, of_bias, *_ = ctx.needs_input_grad
        return (
            transposed_convolve(grad, weight, None, *ctx.steps, *big.shape[2:]) if of_big else None,
            convolution_weight_gradient(grad, big, *weight.shape[2:], *ctx.steps) if of_weight else None,
            _bias_gradient(grad, bias) if of_bias else None,
            None,
            None,
        )


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int
    ) -> Tensor:
        ctx.save_for_backward(small, weight, bias)
        ctx.steps = stride, padding
        return _below(transposed_convolve, small, weight, bias, stride, padding, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        small, weight, bias = ctx.saved_tensors
        of_small, of_weight, of_bias, *_ = ctx.needs_input_grad
        return (
            convolve(grad, weight, None, *ctx.steps) if of_small else None,
            convolution_weight_gradient(small, grad, *weight.shape[2:], *ctx.steps) if of_weight else None,
            _bias_gradient(grad, bias) if of_bias else None,
            None,
            None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(small, big)
        ctx.steps = stride, padding
        return _below(convolution_weight_gradient, small, big, height, width, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        small, big = ctx.saved_tensors
        of_small, of_big, *_ = ctx.needs_input_grad
        return (
            convolve(big, grad, None, *ctx.steps) if of_small else None,
            transposed_convolve(small, grad, None, *ctx.steps, *big.shape[2:]) if of_big else None,
            None,
            None,
            None,
            None,
        )


def _below(op: Op, *arguments: Any) -> Tensor:
    found: Tensor = below_autograd(op.overload, *arguments)
    return found


# ---- registration


def _on_cpu(name: str, reference: Callable[..., Tensor], summed: Callable[[Tensor], int]) -> None:
    """Let the CPU choose between the C++ kernel, an op of its own behind this one, and PyTorch's operations.

    ``summed`` gives of the second factor how many neighbours in memory the kernel sums over.
    """
    library.LIBRARY.define(f"tiled_{name}{_SIGNATURES[name]}")  # which _C implements
    tiled = getattr(torch.ops.ganfast, f"tiled_{name}").default
    forced = os.environ.get("GANFAST_CPU", "auto") != "auto"

    def chosen(*arguments: Any) -> Tensor:
        first, second = arguments[:2]
        if not _fits(first, second, summed(second)):
            return reference(*arguments)
        if forced:
            found: Tensor = tiled(*arguments)
            return found
        shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments)
        ways = {"ganfast": lambda: tiled(*arguments), "torch": lambda: reference(*arguments)}
        return ways[tuning.fastest(f"{name} {shapes} {first.dtype}", ways)]()

    library.LIBRARY.impl(name, chosen, "CPU")


def _fits(one: Tensor, other: Tensor, summed: int) -> bool:
    """Whether the C++ kernel takes factors of these types, in bfloat16 with pairs of numbers to sum over."""
    return one.dtype == other.dtype and (one.dtype == torch.float32 or (one.dtype == torch.bfloat16 and summed % 2 == 0))


_SIGNATURES = {
    "convolve": "(Tensor big, Tensor weight, Tensor? bias, int stride, int padding) -> Tensor",
    "transposed_convolve": (
        "(Tensor small, Tensor weight, Tensor? bias, int stride, int padding, int height, int width) -> Tensor"
    ),
    "convolution_weight_gradient": "(Tensor small, Tensor big, int height, int width, int stride, int padding) -> Tensor",
}


def _registered(
    name: str,
    fake: Callable[..., Tensor],
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    summed: Callable[[Tensor], int],
) -> Op:
    op = register(name + _SIGNATURES[name], reference=reference, fake=fake, differentiable=Differentiable(function, reference))
    if library.CPU == "cpp":
        _on_cpu(name, reference, summed)
    return op


convolve = _registered(
    "convolve", _convolve_fake, _Convolve.apply, convolve_reference, lambda weight: weight.shape[1] * weight.shape[3]
)
transposed_convolve = _registered(
    "transposed_convolve",
    _transposed_fake,
    _Transposed.apply,
    transposed_convolve_reference,
    lambda weight: weight.shape[0],
)
convolution_weight_gradient = _registered(
    "convolution_weight_gradient",
    _weight_fake,
    _WeightGradient.apply,
    convolution_weight_gradient_reference,
    lambda big: 2,  # pixels, of which the last may be alone
)
