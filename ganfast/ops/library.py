"""Where ops meet PyTorch's dispatcher, which holds the kernels of every backend.

:func:`register` gives an op its schema, its reference on every device, its shape function and its gradient. The compiled halves
add faster kernels for one device each, and are loaded here: ``_C`` (C++) for the CPU, ``_C_cuda`` (CUDA C++) or
``ganfast.kernels`` (Triton) for CUDA, as :mod:`ganfast.backends` chooses.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from ganfast.backends import chosen, triton_serves

CPU = chosen("GANFAST_CPU")
CUDA = chosen("GANFAST_CUDA") if torch.cuda.is_available() else "reference"
TRITON = CUDA != "reference" and triton_serves()  # a way on CUDA for ops without kernels in CUDA C++

LIBRARY = torch.library.Library("ganfast", "DEF")


class Op:
    """A registered op, called as the dispatcher's ``overload`` is, past its slow way to the gradient.

    A call goes to the gradient's autograd.Function and from there to the kernel. PyTorch's own way, through ``overload``, comes
    to the same, and hands every tensor of every list from Python to C++ and back once more.
    """

    def __init__(self, overload: Callable[..., Any], on_autograd: Callable[..., Any] | None) -> None:
        self.overload = overload
        self._direct = on_autograd or overload

    def __call__(self, *arguments: Any) -> Any:
        call = self.overload if torch.compiler.is_compiling() else self._direct
        return call(*arguments)


class Differentiable(NamedTuple):
    """What is called with an op's arguments where one of them requires a gradient.

    ``function``: an autograd.Function around :func:`below_autograd`, whose backward is made of torch ops or of registered ones,
    so that it can be differentiated again. ``plain``: the same in torch ops alone, which takes its place within torch.func's
    transforms (grad, jvp, vmap) and among dual numbers.
    """

    function: Callable[..., Any]
    plain: Callable[..., Any]


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Differentiable | None = None,
    on_cuda: Callable[..., Any] | None = None,
) -> Op:
    """Define ``schema`` (PyTorch's schema language) and return what dispatches a call.

    ``reference`` serves every device that has no kernel of its own; ``fake`` gives shapes alone. Without ``differentiable``,
    outputs are constants. ``on_cuda`` takes the CUDA key in place of what :mod:`ganfast.backends` chose.
    ``torch.library.register_autograd`` would do the same and take more host time where arguments are lists (docs/decisions.md).
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    kernels = "ganfast.kernels." + reference.__module__.rpartition(".")[2]
    if on_cuda is not None:
        LIBRARY.impl(name, on_cuda, "CUDA")
    elif CUDA == "triton" and importlib.util.find_spec(kernels):  # what is compiled registers itself
        LIBRARY.impl(name, getattr(importlib.import_module(kernels), name), "CUDA")
    torch.library.register_fake(f"ganfast::{name}", fake, lib=LIBRARY)
    overload = getattr(torch.ops.ganfast, name).default
    on_autograd = _on_autograd(overload, differentiable) if differentiable else None
    LIBRARY.impl(name, on_autograd or torch.library.fallthrough_kernel, "Autograd")
    return Op(overload, on_autograd)


def _on_autograd(overload: Callable[..., Any], differentiable: Differentiable) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return differentiable.plain(*arguments)
        if torch.is_grad_enabled() and any(map(_requires_grad, arguments)):
            return differentiable.function(*arguments)
        return below_autograd(overload, *arguments)

    return call


def below_autograd(overload: Callable[..., Any], *arguments: Any) -> Any:
    """The op's value alone."""
    with torch._C._AutoDispatchBelowAutograd():
        return overload(*arguments)


def without_gradient(ctx: Any, *outputs: torch.Tensor) -> None:
    """Mark outputs of an autograd.Function that have none, and for which its backward gets None, no tensor of zeros.

    So it does for the others, where nothing in the backward pass found one.
    """
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def asked(ctx: Any) -> list[bool]:
    """Of which inputs of an autograd.Function the backward pass that is under way wants the gradient.

    ``ctx.needs_input_grad`` says which could have one: in ``autograd.grad`` by others it has the rest computed for nothing.
    """
    targets = (node for node, _ in ctx.next_functions if node is not None)
    return [needed and _runs(next(targets)) for needed in ctx.needs_input_grad]


def _runs(node: Any) -> bool:
    """Whether a backward pass comes to this node, in which a gradient goes on or ends."""
    try:
        found: bool = torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what a leaf that ``autograd.grad`` was asked for gets, and a call outside of a backward pass
        return True
    return found


def _requires_grad(argument: Any) -> bool:
    if isinstance(argument, list | tuple):
        return any(map(_requires_grad, argument))
    return isinstance(argument, torch.Tensor) and argument.requires_grad
