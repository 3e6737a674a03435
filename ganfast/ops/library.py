"""Where ops meet PyTorch's dispatcher, which holds the kernels of every backend.

:func:`register` gives an op its schema, its reference on every device, its shape function and its gradient. The compiled halves
add faster kernels for one device each, and are loaded here: ``_C`` (C++) for the CPU, ``_C_cuda`` (CUDA C++) or
``ganfast.kernels`` (Triton) for CUDA, as :mod:`ganfast.backends` chooses.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from ganfast.backends import chosen

CPU = chosen("GANFAST_CPU")
CUDA = chosen("GANFAST_CUDA") if torch.cuda.is_available() else "reference"

LIBRARY = torch.library.Library("ganfast", "DEF")


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define ``schema`` (PyTorch's schema language) and return the callable that dispatches.

    ``reference`` serves every device that has no kernel of its own; ``fake`` gives shapes alone. ``differentiable`` is called
    with the same arguments where one of them requires a gradient: an autograd.Function around :func:`below_autograd`, whose
    backward is made of torch ops or of registered ones, so that it can be differentiated again. Without one, outputs are
    constants.

    ``torch.library.register_autograd`` would do the same for several times the host time where arguments are lists: 650 us
    against 420 us for forward and backward of eleven tiny weights (2 cores of an AMD EPYC, torch 2.13).
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    if CUDA == "triton":  # what is compiled registers itself
        page = reference.__module__.rpartition(".")[2]
        LIBRARY.impl(name, getattr(importlib.import_module(f"ganfast.kernels.{page}"), name), "CUDA")
    torch.library.register_fake(f"ganfast::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.ganfast, name).default
    LIBRARY.impl(name, _on_autograd(op, differentiable) if differentiable else torch.library.fallthrough_kernel, "Autograd")
    return op


def _on_autograd(op: Callable[..., Any], differentiable: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(map(_requires_grad, arguments)):
            return differentiable(*arguments)
        return below_autograd(op, *arguments)

    return call


def below_autograd(op: Callable[..., Any], *arguments: Any) -> Any:
    """The op's value alone."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def _requires_grad(argument: Any) -> bool:
    if isinstance(argument, list | tuple):
        return any(map(_requires_grad, argument))
    return isinstance(argument, torch.Tensor) and argument.requires_grad
