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

The first two end with an activation, if asked to: of each sum z, bias and all, they give z where it is positive, else ``slope`` z
(1, the default, is no activation).

Factors are float32 or bfloat16 (in bfloat16 with an even number of channels to sum over); sums are float32. A weight for maps in
bfloat16 may be float32: it is rounded as it is read, and its gradient, where ``dtype`` says float32, not at all (PyTorch's way
rounds and casts). Results have the maps' dtype and lie channels last, and factors that lie otherwise are copied first. Every
number is one sum in a fixed order, so what one way gives does not depend on the number of threads.

:func:`convolution` is what modules call. On the CPU three ways each win for some shapes, so each of the products is measured once
for each shape (:mod:`ganfast.tuning`), unless ``GANFAST_CPU`` is set: PyTorch's own (oneDNN); ``tiled``, rows of pixels times
packed panels of the weight; and ``winograd``, the same with 9 multiplications instead of 16 (4 x 4, stride 2) or 16 instead of 36
(3 x 3, stride 1), where maps have an even number of pixels (Lavin & Gray 2016). The last rounds sums of neighbours to the
factors' dtype: in bfloat16 its error is three times that of the other two, which is that of rounding the result. Where maps make
enough tiles of 4 x 4 pixels it takes 25 multiplications instead of 64 and 36 instead of 144: in float32 always, with an error one
to four times PyTorch's, and in bfloat16 for gradients of 4 x 4 weights, with half as much error again.

On CUDA, where Triton is installed, there are two ways: PyTorch's own (cuDNN), and an implicit GEMM in Triton, whose factors may
also be float16 and channels any number. ``GANFAST_CUDA=triton`` asks for the latter, ``cuda`` and ``reference`` for the former.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ganfast import tuning
from ganfast.ops import library
from ganfast.ops.library import Differentiable, Op, asked, below_autograd, register

Grads = tuple[Tensor | None, ...]

TRITON = library.TRITON  # beside PyTorch's own way, which is cuDNN
TRITON_TYPES = {torch.float32, torch.bfloat16, torch.float16}


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: int | None = None,
    slope: float = 1.0,
) -> Tensor:
    """``nn.Conv2d`` of x (N, C_in, H, W), or, with an ``output_padding``, ``nn.ConvTranspose2d``, and ``nn.LeakyReLU``."""
    if output_padding is None:
        found: Tensor = convolve(x, weight, bias, stride, padding, slope)
        return found
    sizes = ((x.shape[i] - 1) * stride - 2 * padding + weight.shape[i] + output_padding for i in (2, 3))
    found = transposed_convolve(x, weight, bias, stride, padding, *sizes, slope)
    return found


def serves(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool, dtype: torch.dtype | None = None) -> bool:
    """Whether a kernel of this op computes with these, cast to ``dtype``, and its result lies as PyTorch's own would."""
    if x.dim() != 4 or x.numel() == 0 or not lies_last(weight) or not makes_pixels(x, weight, stride, padding, transposed):
        return False
    one, other = dtype or x.dtype, dtype or weight.dtype
    if x.device.type == "cuda":
        return TRITON and one == other and one in TRITON_TYPES
    summed = weight.shape[0] if transposed else weight.shape[1] * weight.shape[3]
    return library.CPU == "cpp" and x.device.type == "cpu" and one == other and _fit(one, other, summed)


def rounds(x: Tensor, weight: Tensor) -> bool:
    """Whether kernels take a float32 weight for x in fewer bits, which for others has to be cast."""
    return library.CPU == "cpp" and x.device.type == "cpu" and weight.dtype == torch.float32


def makes_pixels(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> bool:
    """Whether the result has any; a transposed convolution's may have none."""
    for extent, kernel in zip(x.shape[2:], weight.shape[2:], strict=True):
        if ((extent - 1) * stride - 2 * padding + kernel if transposed else extent + 2 * padding - kernel + 1) < 1:
            return False
    return True


def lies_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


# ---- the three products by PyTorch's own operations


def convolve_reference(big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, slope: float = 1.0) -> Tensor:
    """s (N, A, h, w), with bias (A,) added and what is negative multiplied by ``slope``."""
    s = aten.convolution(big, _narrow(weight, big), _in(big, bias), [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    return bent(_last(s), slope)


def transposed_convolve_reference(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    height: int,
    width: int,
    slope: float = 1.0,
) -> Tensor:
    """b (N, B, height, width), with bias (B,) added and what is negative multiplied by ``slope``."""
    least = [(small.shape[i] - 1) * stride - 2 * padding + weight.shape[i] for i in (2, 3)]
    more = [height - least[0], width - least[1]]
    b = aten.convolution(small, _narrow(weight, small), _in(small, bias), [stride] * 2, [padding] * 2, [1, 1], True, more, 1)
    return bent(_last(b), slope)


def convolution_weight_gradient_reference(
    small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int, dtype: torch.dtype | None = None
) -> Tensor:
    """W (A, B, height, width) in ``dtype``, or that of the maps."""
    weight = torch.empty(
        (small.shape[1], big.shape[1], height, width), dtype=small.dtype, device=small.device, memory_format=torch.channels_last
    )
    steps = [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1
    return _last(typed(aten.convolution_backward(small, big, weight, None, *steps, [False, True, False])[1], dtype))


aten = torch.ops.aten


def _narrow(weight: Tensor, x: Tensor) -> Tensor:
    """A float32 weight, where maps have fewer bits, in theirs; other types that differ are for PyTorch to refuse."""
    return weight.to(x.dtype) if weight.dtype == torch.float32 and x.element_size() < 4 else weight


def _in(x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def bent(z: Tensor, slope: float = 1.0) -> Tensor:
    """z > 0 as it is, else ``slope`` z: of a z that nobody else reads, in its memory where autograd allows that."""
    if slope == 1:
        return z
    return torch.relu_(z) if slope == 0 else F.leaky_relu(z, slope, inplace=slope > 0)


def typed(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """t in ``dtype``, or as it is."""
    return t if dtype is None else t.to(dtype)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


# ---- shapes


def empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _convolve_fake(big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, slope: float = 1.0) -> Tensor:
    h, w = ((big.shape[i] + 2 * padding - weight.shape[i]) // stride + 1 for i in (2, 3))
    return empty(big, big.shape[0], weight.shape[0], h, w)


def _transposed_fake(
    small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int, slope: float = 1.0
) -> Tensor:
    return empty(small, small.shape[0], weight.shape[1], height, width)


def _weight_fake(
    small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int, dtype: torch.dtype | None = None
) -> Tensor:
    return typed(empty(small, small.shape[1], big.shape[1], height, width), dtype)


# ---- gradients


class Recipe(NamedTuple):
    """What an input was made of: less to keep than itself, where its parts are kept anyway.

    ``by_weight(grad, *parts, transposed, height, width, stride, padding, dtype)`` is the gradient of its convolution's weight.
    """

    by_weight: Callable[..., Tensor]
    parts: tuple[Tensor | None, ...]


_recipes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def keep_recipe(made: Tensor, by_weight: Callable[..., Tensor], *parts: Tensor | None) -> None:
    """Let the gradients of the next convolution of ``made`` keep the parts that it was made of, and not itself.

    For who hands ``made`` to that convolution at once: nobody else may have seen it, or the parts, meanwhile.
    """
    _recipes[made] = Recipe(by_weight, parts)


def _keep(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Save what the gradients need: the weight's needs the input, or what it was made of."""
    recipe = _recipes.pop(input, None) or Recipe(by_weight, (input,))
    ctx.by_weight = recipe.by_weight
    ctx.save_for_backward(weight, *(recipe.parts if ctx.needs_input_grad[1] else ()))
    ctx.extents = input.shape[2:]
    ctx.bias_dtype = None if bias is None else bias.dtype


def bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    if grad.shape[1] == 1 and grad.device.type == "cpu":  # a single long sum PyTorch would split by threads
        return grad.sum(3, dtype=torch.promote_types(grad.dtype, torch.float32)).sum(2).sum(0).to(dtype)
    # summed in float32 and rounded once, as PyTorch's is; asked for float32 it would make a copy in float32 first
    return grad.permute(0, 2, 3, 1).reshape(-1, grad.shape[1]).sum(0).to(dtype)


def by_weight(grad: Tensor, input: Tensor, transposed: bool, *kernel: Any) -> Tensor:
    """The gradient by a convolution's weight, of its output's gradient and its input."""
    small, big = (input, grad) if transposed else (grad, input)
    found: Tensor = convolution_weight_gradient(small, big, *kernel)
    return found


def _kernel(weight: Tensor, steps: tuple[int, int]) -> tuple[Any, ...]:
    """Height, width, stride, padding and dtype of a weight's gradient."""
    return *weight.shape[2:], *steps, weight.dtype


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, big: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        _keep(ctx, big, weight, bias)
        ctx.steps = stride, padding
        return _below(convolve, big, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        weight, *parts = ctx.saved_tensors
        of_big, of_weight, of_bias, *_ = asked(ctx)
        # first, so that what is made again for it is gone when the larger gradient comes
        grad_weight = ctx.by_weight(grad, *parts, False, *_kernel(weight, ctx.steps)) if of_weight else None
        grad_big = transposed_convolve(grad, weight, None, *ctx.steps, *ctx.extents) if of_big else None
        return grad_big, grad_weight, bias_gradient(grad, ctx.bias_dtype) if of_bias else None, None, None

    @staticmethod
    def tangent(ctx: Any, t: Tensor) -> Tensor:
        """What becomes of a tangent t of the input; for :mod:`ganfast.tangent`."""
        found: Tensor = convolve(t, ctx.saved_tensors[0], None, *ctx.steps)
        return found

    @staticmethod
    def weights(ctx: Any, t: Tensor, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The weight, and the gradient by it of <delta, the tangent of the output>; nothing for one that does not learn."""
        weight = ctx.saved_tensors[0]
        return [(weight, by_weight(delta, t, False, *_kernel(weight, ctx.steps)))] if weight.requires_grad else []


class _Transposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, small: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, height: int, width: int
    ) -> Tensor:
        _keep(ctx, small, weight, bias)
        ctx.steps, ctx.made = (stride, padding), (height, width)
        return _below(transposed_convolve, small, weight, bias, stride, padding, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        weight, *parts = ctx.saved_tensors
        of_small, of_weight, of_bias, *_ = asked(ctx)
        # first, so that what is made again for it is gone when the larger gradient comes
        grad_weight = ctx.by_weight(grad, *parts, True, *_kernel(weight, ctx.steps)) if of_weight else None
        grad_small = convolve(grad, weight, None, *ctx.steps) if of_small else None
        return grad_small, grad_weight, bias_gradient(grad, ctx.bias_dtype) if of_bias else None, None, None, None, None

    @staticmethod
    def tangent(ctx: Any, t: Tensor) -> Tensor:
        found: Tensor = transposed_convolve(t, ctx.saved_tensors[0], None, *ctx.steps, *ctx.made)
        return found

    @staticmethod
    def weights(ctx: Any, t: Tensor, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
        weight = ctx.saved_tensors[0]
        return [(weight, by_weight(delta, t, True, *_kernel(weight, ctx.steps)))] if weight.requires_grad else []


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        small: Tensor,
        big: Tensor,
        height: int,
        width: int,
        stride: int,
        padding: int,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        ctx.save_for_backward(small, big)
        ctx.steps = stride, padding
        return _below(convolution_weight_gradient, small, big, height, width, stride, padding, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Grads:
        small, big = ctx.saved_tensors
        of_small, of_big, *_ = asked(ctx)
        return (
            convolve(big, grad, None, *ctx.steps) if of_small else None,
            transposed_convolve(small, grad, None, *ctx.steps, *big.shape[2:]) if of_big else None,
            *[None] * 5,
        )


def _ended(function: Callable[..., Tensor], count: int, end: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``end(function(*arguments), *rest)`` for a function of ``count`` arguments."""
    return lambda *arguments: end(function(*arguments[:count]), *arguments[count:])


def _below(op: Op, *arguments: Any) -> Tensor:
    found: Tensor = below_autograd(op.overload, *arguments)
    return found


# ---- the CPU's choice


class Product(NamedTuple):
    """An op: its name, schema and reference, and what of its arguments its C++ kernels depend on."""

    name: str
    signature: str
    reference: Callable[..., Tensor]
    fits: Callable[..., bool]  # whether the kernels take factors of these types
    winograd: Callable[..., bool]  # whether that algorithm applies


def choose_on_cpu(product: Product) -> None:
    """Let the CPU choose between the C++ kernels, ops of their own behind this one, and PyTorch's operations."""
    for kernel in ("tiled", "winograd"):  # which _C implements
        library.LIBRARY.define(f"{kernel}_{product.name}{product.signature}")
    tiled, winograd = (getattr(torch.ops.ganfast, f"{kernel}_{product.name}").default for kernel in ("tiled", "winograd"))
    forced = os.environ.get("GANFAST_CPU", "auto") != "auto"

    def way(*arguments: Any) -> Callable[..., Tensor]:
        if not product.fits(*arguments):
            return product.reference
        ways = {"tiled": tiled}
        if not forced:
            ways["torch"] = product.reference
            if product.winograd(*arguments):
                ways["winograd"] = winograd
        if len(ways) == 1:
            return tiled
        own = arguments[0].dtype  # which a result has whether it was asked for or not
        shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments if a is not own)
        types = own, arguments[1].dtype
        calls = {name: partial(call, *arguments) for name, call in ways.items()}
        return ways[tuning.fastest(f"{product.name} {shapes} {types}", calls)]

    known: dict[Any, Callable[..., Tensor]] = {}

    def chosen(*arguments: Any) -> Tensor:
        key = torch.get_num_threads(), *[(a.shape, a.dtype) if isinstance(a, Tensor) else a for a in arguments]
        if (found := known.get(key)) is None:
            found = known[key] = way(*arguments)
        return found(*arguments)

    library.LIBRARY.impl(product.name, chosen, "CPU")


# ---- CUDA's choice


def choice(name: str, reference: Callable[..., Any], kernel: Callable[..., Any], fits: Callable[..., bool]) -> Callable[..., Any]:
    """An op on CUDA by the faster of its ``reference`` and a Triton ``kernel``, which ``GANFAST_CUDA=triton`` asks for."""
    forced = os.environ.get("GANFAST_CUDA", "auto") != "auto"

    def chosen(*arguments: Any) -> Any:
        if not fits(*arguments):
            return reference(*arguments)
        if forced:
            return kernel(*arguments)
        ways = {"torch": lambda: reference(*arguments), "triton": lambda: kernel(*arguments)}
        first = arguments[0]
        shapes = tuple(tuple(a.shape) if isinstance(a, Tensor) else a for a in arguments if not isinstance(a, float))
        precision = torch.backends.cudnn.conv.fp32_precision if first.dtype == torch.float32 else ""  # type: ignore[attr-defined]
        return ways[tuning.fastest(f"{name} {shapes} {first.dtype} {precision}", ways, first.device)]()

    return chosen


def triton_takes(*arguments: Any) -> bool:
    """Whether Triton's kernels compute with these: maps and a weight of one type, none of them empty."""
    factors = [a for a in arguments if isinstance(a, Tensor) and a.dim() == 4]
    return all(t.dtype == factors[0].dtype and t.dtype in TRITON_TYPES and t.numel() > 0 for t in factors)


def _on_cuda(product: Product, given: int, end: Callable[..., Tensor]) -> Callable[..., Any] | None:
    if not TRITON:
        return None
    from ganfast.kernels import convolution as kernels

    kernel = _ended(getattr(kernels, product.name), given, end)
    return choice(product.name, product.reference, kernel, triton_takes)


def _winograd_applies(
    small: Sequence[int], big: Sequence[int], kernel: Sequence[int], stride: int, padding: int, summed: int
) -> bool:
    """Whether Winograd's algorithm applies: kernels of 4 x 4 with stride 2 or 3 x 3 with stride 1, and everything in pairs."""
    even = not (small[0] % 2 or small[1] % 2 or summed % 2)
    return even and (*kernel, stride, padding) in ((4, 4, 2, 1), (3, 3, 1, 1)) and list(big) == [stride * n for n in small]


def _fit(one: torch.dtype, other: torch.dtype, summed: int) -> bool:
    """Whether the C++ kernels take maps and a weight of these types, in bfloat16 with pairs of numbers to sum over."""
    return other in (one, torch.float32) and (one == torch.float32 or (one == torch.bfloat16 and summed % 2 == 0))


def pair_fits(small: Tensor, big: Tensor, *others: Any) -> bool:
    """Pixels are summed over, of which the last may be alone."""
    dtype = others[4] if len(others) > 4 and others[4] is not None else small.dtype
    return big.dtype == small.dtype and _fit(small.dtype, dtype, 2)


def pair_in_tiles(small: Tensor, big: Tensor, height: int, width: int, stride: int, padding: int, *_: Any) -> bool:
    """Whether Winograd's algorithm makes this gradient of a weight."""
    return _winograd_applies(small.shape[2:], big.shape[2:], (height, width), stride, padding, 2)


# ---- registration


def _registered(
    product: Product, fake: Callable[..., Tensor], function: Callable[..., Tensor], given: int, end: Callable[..., Tensor]
) -> Op:
    """``end(found, *rest)`` makes the result of what a kernel on CUDA makes of the first ``given`` arguments."""
    op = register(
        product.name + product.signature,
        reference=product.reference,
        fake=fake,
        differentiable=Differentiable(function, product.reference),
        on_cuda=_on_cuda(product, given, end),
    )
    if library.CPU == "cpp":
        choose_on_cpu(product)
    return op


convolve = _registered(
    Product(
        "convolve",
        "(Tensor big, Tensor weight, Tensor? bias, int stride, int padding, float slope=1.0) -> Tensor",
        convolve_reference,
        fits=lambda big, weight, *_: _fit(big.dtype, weight.dtype, weight.shape[1] * weight.shape[3]),
        winograd=lambda big, weight, bias, stride, padding, *_: _winograd_applies(
            [size // stride for size in big.shape[2:]], big.shape[2:], weight.shape[2:], stride, padding, weight.shape[1]
        ),
    ),
    _convolve_fake,
    _ended(_Convolve.apply, 5, bent),
    given=5,
    end=bent,
)
transposed_convolve = _registered(
    Product(
        "transposed_convolve",
        "(Tensor small, Tensor weight, Tensor? bias, int stride, int padding, int height, int width, float slope=1.0) -> Tensor",
        transposed_convolve_reference,
        fits=lambda small, weight, *_: _fit(small.dtype, weight.dtype, weight.shape[0]),
        winograd=lambda small, weight, bias, stride, padding, height, width, *_: _winograd_applies(
            small.shape[2:], (height, width), weight.shape[2:], stride, padding, weight.shape[0]
        ),
    ),
    _transposed_fake,
    _ended(_Transposed.apply, 7, bent),
    given=7,
    end=bent,
)
convolution_weight_gradient = _registered(
    Product(
        "convolution_weight_gradient",
        "(Tensor small, Tensor big, int height, int width, int stride, int padding, ScalarType? dtype=None) -> Tensor",
        convolution_weight_gradient_reference,
        fits=pair_fits,
        winograd=pair_in_tiles,
    ),
    _weight_fake,
    _WeightGradient.apply,
    given=6,
    end=typed,
)
_ENDS = {convolve.overload: 5, transposed_convolve.overload: 7}  # where the slope stands


def activates(overload: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Whether a call, as the dispatcher sees it, is a convolution with an activation in its end."""
    at = _ENDS.get(overload)
    return at is not None and len(arguments) > at and arguments[at] != 1
