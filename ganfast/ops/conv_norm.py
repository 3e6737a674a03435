r"""Convolution of a normalised, activated input, with the statistics of its output: what lies between two batch norms.

    a = act(norm(x)),    y = conv(a),    mean and var of y

``norm`` and ``act`` are those of the page :mod:`ganfast.ops.batch_norm`: x (N, C, H, W) by the statistics of ``groups`` of its
batch, gamma and beta (C,) or neither, and the slope of ReLU or LeakyReLU. ``conv`` is one of the two of the page
:mod:`ganfast.ops.convolution`, transposed or not, with one stride and one padding. Handed from one such op to the next, x with
its statistics stands for a, which need not be written to memory:

    conv_norm                   y, and its mean and biased var (groups, C); without groups (0) of shape (0, C)
    conv_norm_input_gradient    dx, dgamma, dbeta of dy
    conv_norm_weight_gradient   the weight's gradient of dy

``mean`` and ``var`` (groups, C) are x's own, as an op before gave them: they spare a pass over x and are no arguments of the
function. So they get no gradient, and dx holds what flows through them, as batch norm's does. Without them (None) a is x, and
the gradients are the convolution's. Only x is kept for the gradients.

Factors x, weight and dy are float32, bfloat16 or float16, all the same; statistics and gradients of gamma and beta are float32
(float64 for float64), and statistics are those of y as it was rounded. Results lie channels last. A group's numbers are as if it
were alone, NaN and Inf included.

Bytes that must move beside the weight's, |x| those of x: |x| + |y| forward; 2 |dy| + 6 |x| backward (dy and x for the weight's
gradient; dy and x for da, which is written; da and x, for dx).

On the CPU the weight's gradient of a transposed convolution, by the statistics of one group, has kernels in C++ that normalise
what they read; everything else is a convolution by itself between passes of batch norm. On CUDA, where Triton is installed, each
op has two ways, and which one is faster is measured once for each shape, as for convolutions: Triton's kernels, which do all of
it, or a convolution by itself between passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ganfast.ops import convolution as products
from ganfast.ops import library
from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_backward, normalise_act
from ganfast.ops.convolution import convolution, convolve, transposed_convolve
from ganfast.ops.library import Differentiable, asked, below_autograd, register, without_gradient

Triple = tuple[Tensor, Tensor, Tensor]
SERVED = ("cuda",) if products.TRITON else ()  # kinds of devices


def serves(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool, dtype: torch.dtype | None = None) -> bool:
    """Whether kernels that leave a unwritten compute with these, cast to ``dtype``, and y lies as PyTorch's own would."""
    types = {dtype or x.dtype, dtype or weight.dtype}
    return (
        x.device.type in SERVED
        and products.lies_last(weight)
        and len(types & products.TRITON_TYPES) == len(types) == 1
        and x.dim() == 4
        and x.numel() > 0
        and x.shape[1] == weight.shape[0 if transposed else 1]
        and products.makes_pixels(x, weight, stride, padding, transposed)
    )


# ---- by the ops of the other pages, which can be differentiated


class Passes(NamedTuple):
    """What is done beside the convolution: a of (x, mean, var, gamma, beta, eps, slope), and mean and var of (y, groups)."""

    activated: Callable[..., Tensor]
    statistics: Callable[[Tensor, int], Sequence[Tensor]]


# which makes statistics that are known again, and reads gradients through them
BY_OP = Passes(
    lambda x, mean, var, gamma, beta, eps, slope: batch_norm_act(x, gamma, beta, mean.shape[0], eps, slope, False)[0],
    lambda y, groups: batch_norm_act(y, None, None, groups, 1.0, 1.0, False)[1:],
)

# which takes statistics as they are: below autograd
NORMALISED = BY_OP._replace(
    activated=lambda x, mean, var, gamma, beta, eps, slope: normalise_act(x, gamma, beta, mean, var, eps, slope, False)
)


def conv_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    stride: int,
    padding: int,
    groups: int,
    passes: Passes = BY_OP,
) -> Triple:
    """y (N, C_out, h, w), mean and biased var (groups, C_out)."""
    a = x if mean is None else passes.activated(x, mean, var, gamma, beta, eps, slope)
    y = convolution(a, weight, bias, stride, padding, 0 if transposed else None)
    if groups == 0:
        none = y.new_empty((0, y.shape[1]), dtype=torch.promote_types(y.dtype, torch.float32))
        return y, none, torch.empty_like(none)
    found_mean, found_var = passes.statistics(y, groups)
    return y, found_mean, found_var


def conv_norm_input_gradient_reference(
    grad: Tensor,
    weight: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    stride: int,
    padding: int,
) -> Triple:
    """dx (N, C, H, W), dgamma and dbeta (C,), which mean nothing without gamma and beta."""
    da = _input_gradient(grad, weight, x.shape[2:], transposed, stride, padding)
    dx, dgamma, dbeta = batch_norm_act_backward(da, x, gamma, beta, mean, var, eps, slope, False)
    return dx.contiguous(memory_format=torch.channels_last), dgamma, dbeta


def conv_norm_weight_gradient_reference(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    slope: float,
    transposed: bool,
    height: int,
    width: int,
    stride: int,
    padding: int,
    dtype: torch.dtype | None = None,
    passes: Passes = BY_OP,
) -> Tensor:
    """As the weight, (C, C_out, height, width) where it is transposed, else (C_out, C, height, width); in ``dtype`` or x's."""
    a = passes.activated(x, mean, var, gamma, beta, eps, slope)
    return products.by_weight(grad, a, transposed, height, width, stride, padding, dtype)


def _input_gradient(
    grad: Tensor, weight: Tensor, extents: tuple[int, ...], transposed: bool, stride: int, padding: int
) -> Tensor:
    found: Tensor = (
        convolve(grad, weight, None, stride, padding)
        if transposed
        else transposed_convolve(grad, weight, None, stride, padding, *extents)
    )
    return found


# ---- shapes


def _fake(x: Tensor, weight: Tensor, *others: Any) -> Triple:
    transposed, stride, padding, groups = others[-4:]
    if transposed:
        extents = [(x.shape[i] - 1) * stride - 2 * padding + weight.shape[i] for i in (2, 3)]
    else:
        extents = [(x.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3)]
    y = products.empty(x, x.shape[0], weight.shape[1 if transposed else 0], *extents)
    mean = y.new_empty((groups, y.shape[1]), dtype=torch.promote_types(y.dtype, torch.float32))
    return y, mean, torch.empty_like(mean)


def _input_gradient_fake(grad: Tensor, weight: Tensor, x: Tensor, mean: Tensor, *_: Any) -> Triple:
    return products.empty(x, *x.shape), mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


def _weight_gradient_fake(grad: Tensor, x: Tensor, *others: Any) -> Tensor:
    transposed, height, width, _, _, *dtype = others[6:]
    small, big = (x, grad) if transposed else (grad, x)
    return products.typed(products.empty(x, small.shape[1], big.shape[1], height, width), *dtype)


# ---- gradients


class _ConvNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *others: Any
    ) -> Triple:
        found: Triple = below_autograd(conv_norm.overload, x, weight, bias, mean, var, *others)
        without_gradient(ctx, *found[1:])
        kept = x if ctx.needs_input_grad[1] or mean is not None else None
        ctx.save_for_backward(kept, weight, mean, var, *others[:2])
        ctx.extents, ctx.bias_dtype = x.shape[2:], None if bias is None else bias.dtype
        ctx.numbers, ctx.steps = others[2:4], others[4:7]
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 13
        x, weight, *norm = ctx.saved_tensors
        mean, _, gamma, beta = norm
        of_x, of_weight, of_bias, *of_norm = asked(ctx)
        dx = dweight = dgamma = dbeta = None
        if mean is None:
            if of_weight:
                dweight = products.by_weight(grad, x, ctx.steps[0], *weight.shape[2:], *ctx.steps[1:])
            if of_x:
                dx = _input_gradient(grad, weight, ctx.extents, *ctx.steps)
        else:
            norm += ctx.numbers
            if of_weight:
                dweight = conv_norm_weight_gradient(grad, x, *norm, ctx.steps[0], *weight.shape[2:], *ctx.steps[1:])
            if of_x or any(of_norm):
                dx, dgamma, dbeta = conv_norm_input_gradient(grad, weight, x, *norm, *ctx.steps)
                dgamma, dbeta = (None, None) if gamma is None else (dgamma.to(gamma.dtype), dbeta.to(beta.dtype))
        dbias = products.bias_gradient(grad, ctx.bias_dtype) if of_bias else None
        return dx, dweight, dbias, None, None, dgamma, dbeta, *[None] * 6


class _Gradient(torch.autograd.Function):
    """One of the gradients, whose own gradient is autograd's of its reference: rare, and so of any order."""

    @staticmethod
    def forward(ctx: Any, name: str, *arguments: Any) -> Any:
        op, ctx.reference = _GRADIENTS[name]
        ctx.arguments = [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in arguments))
        return below_autograd(op.overload, *arguments)

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            # variables of their own: by one of them alone means that the others stand still
            given = [a if t is None else t.view_as(t) for t, a in zip(ctx.saved_tensors, ctx.arguments, strict=True)]
            found = ctx.reference(*given)
            outputs = found if isinstance(found, tuple) else (found,)
            asked = [a for a, wanted in zip(given, needed, strict=True) if wanted]
            grads = iter(torch.autograd.grad(outputs, asked, second, create_graph=True, allow_unused=True))
        return None, *(next(grads) if wanted else None for wanted in needed)


# ---- registration


def _on_cuda(name: str, reference: Callable[..., Any], fits: Callable[..., bool]) -> Callable[..., Any] | None:
    """What takes the CUDA key, where Triton's kernels are a way beside ``reference``."""
    if not products.TRITON:
        return None
    from ganfast.kernels import conv_norm as kernels

    return products.choice(name, reference, getattr(kernels, name), fits)


def _apart(reference: Callable[..., Any]) -> Callable[..., Any]:
    """``reference`` with Triton's passes, none of which makes what is known or writes what is not asked for."""

    def call(*arguments: Any) -> Any:
        from ganfast.kernels.batch_norm import activated, statistics

        last = torch.channels_last
        return reference(
            *arguments, passes=Passes(lambda x, *norm: activated(x.contiguous(memory_format=last), *norm, False), statistics)
        )

    return call


def _same_groups(*arguments: Any) -> bool:
    """Triton's kernels have one group at a time, whose statistics they read and make."""
    mean, groups = arguments[3], arguments[-1]
    return products.triton_takes(*arguments) and (mean is None or groups in (0, mean.shape[0]))


_NORM = "Tensor mean, Tensor var, Tensor? gamma, Tensor? beta, float eps, float slope"
_MAYBE_NORM = _NORM.replace("Tensor ", "Tensor? ")
_WEIGHT_GRADIENT = (
    f"(Tensor grad, Tensor x, {_NORM}, bool transposed, int height, int width, int stride, int padding, ScalarType? dtype=None)"
    " -> Tensor"
)

conv_norm = register(
    f"conv_norm(Tensor x, Tensor weight, Tensor? bias, {_MAYBE_NORM}, bool transposed, int stride, int padding, int groups)"
    " -> (Tensor, Tensor, Tensor)",
    reference=conv_norm_reference,
    fake=_fake,
    differentiable=Differentiable(_ConvNorm.apply, conv_norm_reference),
    on_cuda=_on_cuda("conv_norm", _apart(conv_norm_reference), _same_groups),
)
conv_norm_input_gradient = register(
    f"conv_norm_input_gradient(Tensor grad, Tensor weight, Tensor x, {_NORM}, bool transposed, int stride, int padding)"
    " -> (Tensor, Tensor, Tensor)",
    reference=conv_norm_input_gradient_reference,
    fake=_input_gradient_fake,
    differentiable=Differentiable(partial(_Gradient.apply, "conv_norm_input_gradient"), conv_norm_input_gradient_reference),
    on_cuda=_on_cuda("conv_norm_input_gradient", conv_norm_input_gradient_reference, products.triton_takes),
)
conv_norm_weight_gradient = register(
    "conv_norm_weight_gradient" + _WEIGHT_GRADIENT,
    reference=conv_norm_weight_gradient_reference,
    fake=_weight_gradient_fake,
    differentiable=Differentiable(partial(_Gradient.apply, "conv_norm_weight_gradient"), conv_norm_weight_gradient_reference),
    on_cuda=_on_cuda("conv_norm_weight_gradient", _apart(conv_norm_weight_gradient_reference), products.triton_takes),
)
if library.CPU == "cpp":
    products.choose_on_cpu(
        products.Product(
            "conv_norm_weight_gradient",
            _WEIGHT_GRADIENT,
            partial(conv_norm_weight_gradient_reference, passes=NORMALISED),
            # kernels normalise what they read where a pixel is read once, and no padding
            fits=lambda grad, x, mean, var, gamma, beta, eps, slope, transposed, *kernel: (
                transposed and len(mean) == 1 and products.pair_fits(x, grad, *kernel)
            ),
            winograd=lambda grad, x, mean, var, gamma, beta, eps, slope, transposed, *kernel: products.pair_in_tiles(
                x, grad, *kernel
            ),
        )
    )
_GRADIENTS = {
    "conv_norm_input_gradient": (conv_norm_input_gradient, conv_norm_input_gradient_reference),
    "conv_norm_weight_gradient": (conv_norm_weight_gradient, conv_norm_weight_gradient_reference),
}
