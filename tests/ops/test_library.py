"""What an op's outputs without a gradient cost a backward pass: nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ganfast.ops.batch_norm import batch_norm_act
from ganfast.ops.conv_norm import conv_norm
from ganfast.ops.gradient_penalty import slope_penalty

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "batch_norm_act": lambda x: batch_norm_act(x, None, None, 1, 1e-5, 0.0, False)[0],
    "conv_norm": lambda x: conv_norm(x, torch.ones(2, 3, 1, 1), None, None, None, None, None, 1e-5, 1.0, False, 1, 0, 1)[0],
    "slope_penalty": lambda x: slope_penalty(x, 1.0, 10.0, False)[0],
}
every = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every
def test_no_gradient_is_made_up_for_them(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = call(x)
    upstream = torch.ones_like(y)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        y.backward(upstream)
    # the node's own name says that the profile saw the pass
    names = [event.name for event in profiled.events()]
    assert any("Backward" in name for name in names)
    assert "aten::zeros" not in names


class _GivesNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@every
def test_a_gradient_that_was_not_found_is_none_further_on(call: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y: Any = _GivesNone.apply(call(x))
    assert torch.autograd.grad(y.sum(), x, allow_unused=True) == (None,)
