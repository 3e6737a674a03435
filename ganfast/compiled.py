"""Penalties within torch.compile.

The critic's call is ordinary code of the compiled region, so that all it depends on is guarded and lifted as ever. What gets its
output is run once, on symbolic tensors, for the graph that it leaves: at that time autograd's own graph is there to be read.

Imported only while something is being compiled: torch._dynamo takes seconds to load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._dynamo import nonstrict_trace
from torch.autograd.graph import get_gradient_edge

from ganfast import penalties, tangent

_slope_of = nonstrict_trace(penalties.slope_of)
# run every time, between two graphs
_outside_of_it = torch.compiler.disable(
    penalties.value_and_gradient,
    reason="this critic is no module, cannot be traced as one graph, has an autograd.Function, or batch norm in training mode",
)


@nonstrict_trace
def _leaf(point: Tensor) -> Tensor:
    return point.detach().requires_grad_()


@nonstrict_trace
def _whole(output: Tensor, point: Tensor, variables: Sequence[Tensor]) -> bool:
    """Whether the output's graph is all there, and what the tracer leaves of it can be differentiated twice.

    After a graph break it begins in what the graph before returned, for which a tracer has a node that is named an error. Of an
    autograd.Function it keeps the first derivative alone. And batch norm is to be refused when the step is run.
    """
    nodes = set(tangent.nodes_of([output.grad_fn]))
    given = {get_gradient_edge(tensor).node for tensor in variables if tensor.requires_grad}
    lost = any(tangent.operation(node).endswith("Error") for node in nodes - given)
    return point.requires_grad and not lost and all(tangent.is_linear(node) and not penalties.ties(node) for node in nodes)


def value_and_gradient(
    critic: penalties.Critic, point: Tensor, conditions: tuple[Tensor, ...], target: float, weight: float, one_sided: bool
) -> Tensor:
    """:func:`ganfast.penalties.value_and_gradient`, which it calls between two graphs where the critic breaks one."""
    numbers = (target, weight, one_sided)
    if isinstance(critic, nn.Module):
        variables = (*critic.parameters(), *conditions)
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = _leaf(point)
            output = penalties.output_of(critic, leaf, conditions)
        if _whole(output, leaf, variables):
            return _slope_of(output, leaf, variables, *numbers, learning)
    return _outside_of_it(critic, point, conditions, *numbers)
