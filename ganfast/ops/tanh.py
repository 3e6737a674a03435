r"""tanh, in one pass.

    y = tanh(x),    dx = dy (1 - y^2)

x of any shape, in float32 or bfloat16 on the CPU, where the kernel in C++ is within two units in the last place of float32, and
rounds once in bfloat16, in which what is smaller than a normal number may become 0. y lies as x does; -0, infinities and NaN give
what :func:`torch.tanh` gives. Other types and devices are PyTorch's. Only y is kept for the gradient, which can be differentiated
any number of times.

Bytes that must move: 2 |x| forward, 3 |x| backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ganfast.ops import library
from ganfast.ops.library import Differentiable, below_autograd, register

_TYPES = (torch.float32, torch.bfloat16)


def tanh(x: Tensor) -> Tensor:
    """tanh of x, by the kernel where there is one."""
    ours = library.CPU == "cpp" and type(x) is Tensor and x.device.type == "cpu" and x.dtype in _TYPES
    found: Tensor = tanh_op(x) if ours and not torch.compiler.is_compiling() else torch.tanh(x)
    return found


def tanh_reference(x: Tensor) -> Tensor:
    return torch.tanh(x)


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y: Tensor = below_autograd(tanh_op.overload, x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.tanh_backward(grad, y)


tanh_op = register(
    "tanh(Tensor x) -> Tensor",
    reference=tanh_reference,
    fake=torch.empty_like,
    differentiable=Differentiable(_Tanh.apply, tanh_reference),
)


def activates(overload: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Whether a call, as the dispatcher sees it, is this op: an activation always."""
    return overload is tanh_op.overload
