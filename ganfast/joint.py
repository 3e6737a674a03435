r"""A critic's whole step in one batch of 3N: real and generated samples, and the points where its slope is penalised.

Let X = [real; fake; x^], s = D(X), and L = loss(s_real, s_fake) + P(g) with g the gradient of the sum of s_x^ by x^. One forward
pass gives s; one backward pass with [dL/ds_real; dL/ds_fake; 1] gives every layer's delta, and g; one pass forward over the
points alone makes their tangents t of v = dP/dg (:mod:`ganfast.tangent`). A layer's weight W, with inputs a, then has

    dW = weight_gradient([a_real; a_fake; t], delta),

one product for the whole step, and a bias the sum of delta over the first 2N samples. That presumes that the critic's Jacobian is
constant in pieces and that samples do not influence each other. Both are looked up operation by operation, and an operation that
is not known to keep samples apart (:func:`_apart`) raises Unreadable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ganfast import tangent
from ganfast.tangent import BILINEAR, DIAGONAL, VIEWS, Node, Pair, Step, Unreadable

aten = torch.ops.aten

# Operations on maps (N, C, ...), which look at pixels of one channel of one sample.
_MAPS = re.compile(r"(?:Adaptive|)(?:Avg|Max)Pool(\d)D\w*|(?:Reflection|Replication)Pad(\d)D|Upsample\D+(\d)D")
# Operations along the dimensions that they name, and these names.
_ALONG = {
    **dict.fromkeys(["Sum", "Mean", "Cat", "Slice", "Select", "Amax", "Amin"], ("_saved_dim",)),
    "Flip": ("_saved_dims",),
    "Transpose": ("_saved_dim0", "_saved_dim1"),
}
_SAME = frozenset(["Alias", "Clone", "ToCopy"])
# The data that a product saves for its weight's gradient.
_DATA = {
    "Convolution": ("_saved_input", ""),
    "Addmm": ("", "_saved_mat1"),
    "Mm": ("_saved_self", ""),
    "Mul": ("_saved_self", "_saved_other"),
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

    ``points`` (3N, ...) is a leaf, ``[real; fake; x^]``. Raises Unreadable, without a trace, where the form above is not proven.
    """
    n = len(points) // 3
    path = tangent.steps(output, points)
    for step in path:
        if not _apart(step, 3 * n):
            raise Unreadable(f"{step.name} is not known to keep samples apart")
    if not path:
        raise Unreadable("the critic does not look at its input")
    real, fake = (part.detach().requires_grad_() for part in output[: 2 * n].split(n))
    with torch.enable_grad():
        adversarial = loss(real, fake)
        by_scores = torch.autograd.grad(adversarial, (real, fake), retain_graph=True, materialize_grads=True)
    upstream = torch.cat([*by_scores, torch.ones_like(output[2 * n :])])
    by_points, deltas = tangent.sweep(path, output, points, upstream, _has_weights)
    with torch.enable_grad():
        g = by_points[2 * n :].detach().requires_grad_()
        value = penalty(g)
        (v,) = torch.autograd.grad(value, g)
    with torch.no_grad():
        pairs, along = _weight_gradients(path, points, output, v, deltas, n)
        trust = tangent.verified(path, along, g, v)
    # what the loss was made of besides has its gradients from its own graph, which ends at the scores
    total = adversarial + tangent.with_gradients(value.detach(), pairs, trust)
    return Losses(total, adversarial.detach(), value.detach(), real.detach(), fake.detach())


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
            data = getattr(node, _DATA[step.name][i])
            yield from step.bilinear.weights(node, i, torch.cat([data[: 2 * n], t.to(data.dtype)]), delta)
        else:
            bias = tangent.leaf_of(target, ())
            summed = delta[: 2 * n].sum((0, *range(2, delta.dim()))) if step.name == "Convolution" else delta[: 2 * n]
            yield bias, summed.sum_to_size(bias.shape).clone()


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


# ---- the proof


def _has_weights(step: Step) -> bool:
    return any(target is not None and k not in step.inputs for k, (target, _) in enumerate(step.node.next_functions))


def _apart(step: Step, rows: int) -> bool:
    """Whether each row of the output is known to come from the same row of the data, linearly in pieces."""
    node, name = step.node, step.name
    before = [_shape(*node.next_functions[i]) for i in step.inputs]
    after = tuple(node._input_metadata[0].shape)
    if len(node._input_metadata) > 1 and name != "MaxPool2DWithIndices":
        return False
    if any(shape[:1] != (rows,) for shape in (*before, after)):
        return False
    if name == "Convolution":
        return step.inputs == (0,) and len(before[0]) == node._saved_weight.dim()
    if name in ("Addmm", "Mm"):
        return step.inputs == (1 if name == "Addmm" else 0,) and getattr(node, "_saved_beta", 1) == 1
    elementwise = all(shape == after for shape in before)
    if name == "Mul":
        return elementwise and step.bilinear is not None
    if name == "Add":
        return elementwise and node._saved_alpha == 1
    if _has_weights(step):
        return False
    if name in DIAGONAL or name in _SAME:
        return elementwise and step.inputs == (0,)
    if name in VIEWS:
        return True
    if name == "Permute":
        return _axes(node._saved_dims, len(after))[0] == 0
    if name in _ALONG:
        ndim = max(len(after), *map(len, before))
        return all(0 not in _axes(getattr(node, attribute, 0), ndim) for attribute in _ALONG[name])
    maps = _MAPS.fullmatch(name)
    return maps is not None and len(before[0]) == 2 + int(next(filter(None, maps.groups())))


def _shape(node: Node, number: int) -> tuple[int, ...]:
    """That of a node's output, or of a leaf."""
    return tuple(node._input_metadata[number].shape)


def _axes(saved: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Dimensions as a node has saved them: negative ones count from the end, and may have lost their sign."""
    axes = saved if isinstance(saved, tuple) else (saved,)
    return tuple((axis - 2**64 if axis >= 2**63 else axis) % ndim for axis in axes)
