r"""A critic's whole step in one batch of 3N: real and generated samples, and the points where its slope is penalised.

Let X = [real; fake; x^], s = D(X), and L = loss(s_real, s_fake) + P(g) with g the gradient of the sum of s_x^ by x^. One forward
pass gives s; one backward pass with [dL/ds_real; dL/ds_fake; 1] gives every layer's delta, and g; one pass forward over the
points alone makes their tangents t of v = dP/dg (:mod:`ganfast.tangent`). A layer's weight W, with inputs a, then has

    dW = weight_gradient([a_real; a_fake; t], delta),

one product for the whole step, and a bias the sum of delta over the first 2N samples. That presumes that samples do not influence
each other, which :mod:`ganfast.apart` proves, and that the critic's Jacobian is constant in pieces, which the graph shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ganfast import tangent
from ganfast.tangent import BILINEAR, VIEWS, Node, Pair, Step, Unreadable

aten = torch.ops.aten

# What a product of the data, its input i, has saved: they themselves, for their factor's gradient, and that factor.
_SAVED = {
    ("Convolution", 0): ("_saved_input", "_saved_weight"),
    ("Addmm", 1): ("_saved_mat1", "_saved_mat2"),
    ("Mm", 0): ("_saved_self", "_saved_mat2"),
    ("Mul", 0): ("_saved_self", "_saved_other"),
    ("Mul", 1): ("_saved_other", "_saved_self"),
}


class Losses(NamedTuple):
    """``total`` has the gradient; the others are values alone."""

    total: Tensor
    adversarial: Tensor
    penalty: Tensor
    real: Tensor
    fake: Tensor


def joint_loss(
    output: Tensor,
    points: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    penalty: Callable[[Tensor], Tensor],
) -> Losses:
    """``loss(real, fake)`` of the scores and ``penalty(g)`` of the slopes, for the ``output`` of a critic at ``points``.

    ``points`` (3N, ...) is a leaf, ``[real; fake; x^]``, whose samples the critic keeps apart. Raises Unreadable, without a
    trace, where the graph is not the one that the form above is for.
    """
    n = len(points) // 3
    with tangent.reading():
        path = _read(output, points)
    real, fake = (part.detach().requires_grad_() for part in output[: 2 * n].split(n))
    with torch.enable_grad():
        adversarial = loss(real, fake)
        by_scores = torch.autograd.grad(adversarial, (real, fake), retain_graph=True, materialize_grads=True)
    upstream = torch.cat([*by_scores, torch.ones_like(output[2 * n :])])
    with tangent.reading():
        by_points, deltas, doubts = tangent.sweep(path, output, points, upstream, _has_weights)
    g = by_points[2 * n :].detach().requires_grad_()
    # of one product, tangents have the unit of the data
    with torch.enable_grad():
        value = penalty(g)
        (v,) = torch.autograd.grad(value, g)
    with torch.no_grad(), tangent.reading():
        pairs, along = _weight_gradients(path, points, output, v, deltas, n)
        trust = tangent.verified(path, along, g, v, doubts)
        if not pairs:
            raise Unreadable("the critic has no weights that learn")
    # what the loss was made of besides has its gradients from its own graph, which ends at the scores
    total = adversarial + tangent.with_gradients(value.detach(), pairs, trust, torch.ones_like(value))
    return Losses(total, adversarial.detach(), value.detach(), real.detach(), fake.detach())


def _read(output: Tensor, points: Tensor) -> list[Step]:
    """The steps, all of which :func:`_tangent` and :func:`_pairs` are for."""
    path = tangent.steps(output, points)
    if not path:
        raise Unreadable("the critic does not look at its input")
    for step in path:
        if not _simple(step):
            raise Unreadable(f"{step.name} is not of the form that one batch is for")
    if not all(map(tangent.is_linear, tangent.aside(path, get_gradient_edge(points).node))):
        raise Unreadable("a weight goes through an autograd.Function")
    return path


def _weight_gradients(
    path: list[Step], points: Tensor, output: Tensor, v: Tensor, deltas: dict[Node, tuple[Tensor | None, ...]], n: int
) -> tuple[list[Pair], Tensor]:
    """The gradients of all weights, and the derivative of the points' summed output along v."""
    edge = get_gradient_edge(points)
    tangents: dict[tuple[Node, int], Tensor] = {(edge.node, edge.output_nr): v.to(points.dtype)}
    waiting = Counter(step.node.next_functions[i] for step in path for i in step.inputs)
    pairs: list[Pair] = []
    for step in path:
        given: dict[int, Tensor] = {}
        for i in step.inputs:
            source = step.node.next_functions[i]
            waiting[source] -= 1
            given[i] = tangents[source] if waiting[source] else tangents.pop(source)
        if _has_weights(step):
            (delta, *_) = deltas.pop(step.node)
            if delta is not None:
                pairs += _pairs(step, given, delta, n)
        tangents[step.node, 0] = _tangent(step, given, n)
    end = get_gradient_edge(output)
    return pairs, tangents[end.node, end.output_nr].double().sum()


def _pairs(step: Step, given: Mapping[int, Tensor], delta: Tensor, n: int) -> Iterator[Pair]:
    """The gradients of what the data meet in this operation: a factor, a bias."""
    node = step.node
    for k, (target, _) in enumerate(node.next_functions):
        if target is None or k in step.inputs:
            continue
        if step.bilinear and k in step.bilinear.factors:
            ((i, t),) = given.items()
            data = getattr(node, _SAVED[step.name, i][0])
            yield from step.bilinear.weights(node, i, torch.cat([data[: 2 * n], t.to(data.dtype)]), delta)
        else:
            while tangent.operation(target) == "ToCopy":  # autocast's
                target = target.next_functions[0][0]
            bias = tangent.leaf_of(target, ())
            summed = delta[: 2 * n].sum((0, *range(2, delta.dim()))) if step.name == "Convolution" else delta[: 2 * n]
            yield bias, summed.sum_to_size(bias.shape).to(bias.dtype, copy=True)


def _tangent(step: Step, given: Mapping[int, Tensor], n: int) -> Tensor:
    """J t for the last n of the samples."""
    node, name = step.node, step.name
    (i, t), *others = given.items()
    if name in ("Convolution", "Addmm", "Mm"):
        return BILINEAR[name].tangent(node, i, t)
    if name == "Mul":
        factor = node._saved_other if i == 0 else node._saved_self
        each = isinstance(factor, Tensor) and factor.dim() == t.dim() and len(factor) == 3 * n
        return t * (factor[2 * n :] if each else factor)
    if name == "Relu":
        return aten.threshold_backward(t, node._saved_result[2 * n :], 0)
    if name == "LeakyRelu":
        in_place = hasattr(node, "_saved_result")
        seen = node._saved_result if in_place else node._saved_self
        return aten.leaky_relu_backward(t, seen[2 * n :], node._saved_negative_slope, in_place)
    if name in VIEWS:
        return t.reshape(n, *node._input_metadata[0].shape[1:])
    if name == "Add":
        return sum((other for _, other in others), start=t)
    whole = {k: torch.cat([part.new_zeros(2 * n, *part.shape[1:]), part]) for k, part in given.items()}
    for _, found in tangent.tangents_of(step, whole):
        return found[2 * n :]
    return t.new_zeros(n, *node._input_metadata[0].shape[1:])


def _has_weights(step: Step) -> bool:
    return any(target is not None and k not in step.inputs for k, (target, _) in enumerate(step.node.next_functions))


def _simple(step: Step) -> bool:
    """Whether its tangents, and its weights' gradients, are those of this file."""
    node, name = step.node, step.name
    outputs = node._input_metadata
    if step.curved or any(meta.dtype == torch.float16 for meta in outputs):  # float16's range asks for tangents in their own unit
        return False
    if len(outputs) > 1 and name != "MaxPool2DWithIndices":
        return False
    elementwise = all(_shape(*node.next_functions[i]) == tuple(outputs[0].shape) for i in step.inputs)
    if name == "Add":
        return elementwise and node._saved_alpha == 1
    if step.bilinear:
        if (name, *step.inputs) not in _SAVED or getattr(node, "_saved_beta", 1) != 1 or (name == "Mul" and not elementwise):
            return False
        # a weight that was frozen when it was used, and no longer is, has a gradient from the penalty alone
        (k,) = {*step.bilinear.factors} - {*step.inputs}
        factor = getattr(node, _SAVED[name, step.inputs[0]][1])
        return (node.next_functions[k][0] is not None) == (isinstance(factor, Tensor) and factor.requires_grad)
    return not _has_weights(step)


def _shape(node: Node, number: int) -> tuple[int, ...]:
    """That of a node's output, or of a leaf."""
    return tuple(node._input_metadata[number].shape)
