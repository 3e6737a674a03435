r"""The gradient of a network's slope by its weights, without double backward: read off the autograd graph of one forward pass.

For outputs D(x) with g = grad_x sum D(x), a loss of the slope L(g) and v = dL/dg, the chain rule ends in a directional
derivative:

    dL/dW = d/dW <v, g> = d/dW s,    s = the derivative of sum D(x) along v, with v held still.

s is what the *tangent* network makes of v: every node of the graph replaced by its Jacobian, t_out = J t_in. Its adjoints are the
gradients delta that the backward pass for g has already computed, because s is linear in each t. So a bilinear node, a
convolution or a product with a weight, adds weight_gradient(t, delta) to its weight, in one pass from the input to the output:

    1. forward    2. backward for g, keeping delta where a weight is    3. v    4. tangent forward, with the weights' gradients

A node whose Jacobian depends on its inputs (a smooth activation, a normalisation, a product of two branches) adds

    d/d(inputs) <delta, J(inputs) t>

besides, which its own differentiable backward gives, and which flows back through the graph that is there. Where J is piecewise
constant, as for (Leaky)ReLU, pools and everything linear, that term is zero almost everywhere: a critic made of those alone costs
four passes, and double backward six (the two more carry zeros). Which nodes those are is known by name (:data:`CONSTANT`); a name
that is not known counts as a node whose Jacobian may depend on anything. So nothing is assumed, and nothing is approximated.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ganfast.ops.convolution import convolution, convolution_weight_gradient, serves

Node = Any  # torch.autograd.graph.Node, whose saved tensors are attributes
Edge = tuple[Node, int]  # and the number of its output
Pair = tuple[Tensor, Tensor]  # a tensor and what is to be added to its gradient

aten = torch.ops.aten


class Unreadable(Exception):
    """The graph does not say all that would have to be known."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Whatever fails while a graph is read is Unreadable: autograd itself may well succeed."""
    try:
        yield
    except (Unreadable, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise Unreadable(f"to read it failed: {error}") from error


# ---- nodes by name

# Nodes by the names of their forward operations, which autograd's names begin with.
#
# The Jacobian is diagonal, and piecewise constant: what the node's backward does to a gradient it does to a tangent.
DIAGONAL = frozenset(
    ["Abs", "Clamp", "ClampMax", "ClampMin", "Hardtanh", "LeakyRelu", "NativeDropout", "Neg", "Relu", "Threshold"],
)
# Of these, where the Jacobian jumps.
KINKED = DIAGONAL - {"NativeDropout", "Neg"}
# The tangent is in another shape, in the order of memory.
VIEWS = frozenset(["ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View"])
# The Jacobian is piecewise constant, whatever the inputs are.
CONSTANT = frozenset(
    [
        *DIAGONAL,
        *VIEWS,
        *("Add", "Rsub", "Sub", "Sum", "Mean", "Cat", "Stack", "Clone", "ToCopy", "Where", "MaskedFill"),
        *("Alias", "AsStrided", "Diagonal", "Expand", "Flip", "Permute", "Repeat", "Roll", "Select", "Slice", "Split"),
        *("SplitWithSizes", "T", "Transpose", "Unbind", "Unfold"),
        *("Gather", "Index", "IndexSelect"),
        *("Amax", "Amin", "Max", "Maximum", "Min", "Minimum"),
        *("AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AvgPool2D", "AvgPool3D"),
        *("AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "MaxPool2DWithIndices", "MaxPool3DWithIndices"),
        *("ChannelShuffle", "Col2Im", "Im2Col", "PixelShuffle", "PixelUnshuffle"),
        *("ConstantPadNd", *(f"{kind}Pad{n}D" for kind in ("Reflection", "Replication") for n in (1, 2, 3))),
        *("UpsampleBicubic2D", "UpsampleBilinear2D", "UpsampleLinear1D", "UpsampleTrilinear3D"),
        *(f"UpsampleNearest{exact}{n}D" for exact in ("", "Exact") for n in (1, 2, 3)),
    ]
)


# ---- bilinear nodes: linear in the data when the weight stands still, and the other way round


@dataclass(frozen=True)
class Bilinear:
    """``tangent(node, i, t)`` is J t for a tangent of input i; ``weights(node, i, t, delta)`` the other inputs' gradients.

    ``factors`` are the inputs whose product the node takes: where two of them depend on the data, J is not constant.
    """

    factors: tuple[int, ...]
    tangent: Callable[[Node, int, Tensor], Tensor]
    weights: Callable[[Node, int, Tensor, Tensor], Iterable[Pair]]


def _convolution(node: Node, i: int, t: Tensor) -> Tensor:
    maps, kernels = (t, node._saved_weight) if i == 0 else (node._saved_input, t)
    if own := _own(node, maps, kernels):
        return convolution(maps, kernels, None, *own)
    return aten.convolution(maps, kernels, None, *_geometry(node))


def _convolved(node: Node, i: int, t: Tensor, delta: Tensor) -> Iterator[Pair]:
    other = node._saved_weight if i == 0 else node._saved_input
    if other.requires_grad:
        maps, kernels = (t, other) if i == 0 else (other, t)
        if i == 0 and (own := _own(node, maps, kernels)):
            small, big = (t, delta) if node._saved_transposed else (delta, t)
            yield other, convolution_weight_gradient(small, big, *other.shape[2:], *own[:2])
            return
        grads = aten.convolution_backward(delta, maps, kernels, None, *_geometry(node), [i == 1, i == 0, False])
        yield other, grads[1 - i]


def _own(node: Node, maps: Tensor, kernels: Tensor) -> tuple[int, int, int | None] | None:
    """Stride, padding and output padding, where the op of :mod:`ganfast.ops.convolution` computes the convolution."""
    strides, paddings, dilations, transposed, more, groups = _geometry(node)
    plain = len(strides) == 2 and strides[0] == strides[1] and paddings[0] == paddings[1] and groups == 1
    if not plain or (*dilations, *more) != (1, 1, 0, 0) or torch.compiler.is_compiling():
        return None
    steps = strides[0], paddings[0]
    return (*steps, 0 if transposed else None) if serves(maps, kernels, *steps, transposed) else None


def _geometry(node: Node) -> tuple[Any, ...]:
    shape = (node._saved_stride, node._saved_padding, node._saved_dilation)
    return *shape, node._saved_transposed, node._saved_output_padding, node._saved_groups


def _matrices(left: str, right: str, first: int, scale: str = "") -> Bilinear:
    """A matrix product whose two factors are saved by these names and are the inputs ``first`` and ``first + 1``."""

    def factor(node: Node, i: int) -> Tensor:
        return getattr(node, right if i == first else left)

    def scaled(node: Node, product: Tensor) -> Tensor:
        alpha = getattr(node, scale) if scale else 1
        return product if alpha == 1 else alpha * product

    def tangent(node: Node, i: int, t: Tensor) -> Tensor:
        other = factor(node, i)
        return scaled(node, t @ other if i == first else other @ t)

    def weights(node: Node, i: int, t: Tensor, delta: Tensor) -> Iterator[Pair]:
        other = factor(node, i)
        if other.requires_grad:
            yield other, scaled(node, t.mT @ delta if i == first else delta @ t.mT)

    return Bilinear((first, first + 1), tangent, weights)


def _multiplied(node: Node, i: int, t: Tensor) -> Tensor:
    return t * (node._saved_other if i == 0 else node._saved_self)


def _multiplier(node: Node, i: int, t: Tensor, delta: Tensor) -> Iterator[Pair]:
    other = node._saved_other if i == 0 else node._saved_self
    if isinstance(other, Tensor) and other.requires_grad:
        yield other, (delta * t).sum_to_size(other.shape)


BILINEAR = {
    "Convolution": Bilinear((0, 1), _convolution, _convolved),
    "Addmm": _matrices("_saved_mat1", "_saved_mat2", 1, "_saved_alpha"),
    "Mm": _matrices("_saved_self", "_saved_mat2", 0),
    "Bmm": _matrices("_saved_self", "_saved_mat2", 0),
    "Mul": Bilinear((0, 1), _multiplied, _multiplier),
}

# An autograd.Function of ganfast's that is linear in its first input says so by two methods of its own.
_OURS = Bilinear(
    (0,),
    lambda node, i, t: node._forward_cls.tangent(node, t),
    lambda node, i, t, delta: node._forward_cls.weights(node, t, delta),
)


def _rule(node: Node, name: str) -> Bilinear | None:
    if callable(node):
        return BILINEAR.get(name)
    return _OURS if is_linear(node) and hasattr(node._forward_cls, "tangent") else None


# ---- a graph


@dataclass(frozen=True)
class Step:
    """A node that the data go through; ``inputs`` are the numbers of those of its inputs that carry them."""

    node: Node
    name: str
    inputs: tuple[int, ...]

    @functools.cached_property
    def bilinear(self) -> Bilinear | None:
        """Its rule, if it is a product of the data with something else."""
        rule = _rule(self.node, self.name)
        return rule if rule and sum(i in rule.factors for i in self.inputs) == 1 else None

    @functools.cached_property
    def curved(self) -> bool:
        """Whether its Jacobian may depend on its inputs."""
        if self.name == "Div":
            return sum(target is not None for target, _ in self.node.next_functions) > 1 or self.inputs != (0,)
        return self.bilinear is None and self.name not in CONSTANT


def operation(node: Node) -> str:
    """The forward operation of one of PyTorch's own nodes: Relu for ReluBackward0. Other nodes' whole name."""
    name = str(node.name())
    return _forward_name(name) if callable(node) else name


@functools.cache
def _forward_name(name: str) -> str:
    own = re.fullmatch(r"(\w+)Backward\d+", name)
    return own[1] if own else name


def nodes_of(roots: Iterable[Node], source: Node = None) -> list[Node]:
    """The nodes that these were made of, they themselves included; without ``source`` and what only that was made of."""
    seen: set[Node | None] = {source, None}
    found: list[Node] = []
    stack: list[Node] = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            found.append(node)
            stack += (target for target, _ in node.next_functions)
    return found


def steps(output: Tensor, point: Tensor) -> list[Step]:
    """The nodes between ``point``, a leaf, and ``output``, in the order in which the data went through them.

    Raises Unreadable where something was written in place into a part of a tensor, for an autograd.Function, and for complex
    numbers.
    """
    source = get_gradient_edge(point).node
    reaches: dict[Node, bool] = {source: True}
    order: list[Step] = []
    stack: list[tuple[Node, bool]] = [(get_gradient_edge(output).node, False)]
    while stack:
        node, seen = stack.pop()
        if node in reaches:
            continue
        targets = [target for target, _ in node.next_functions]
        if not seen:
            stack += [(node, True), *((target, False) for target in targets if target is not None and target not in reaches)]
            continue
        inputs = tuple(i for i, target in enumerate(targets) if target is not None and reaches[target])
        reaches[node] = bool(inputs)
        if inputs:
            name = operation(node)
            if name.endswith("CopySlices"):
                raise Unreadable("it writes into a part of a tensor in place")
            if not callable(node) and (_rule(node, name) is None or inputs != (0,)):
                raise Unreadable(f"{name} is an autograd.Function, whose Jacobian only its backward knows")
            if any(meta.dtype.is_complex for meta in node._input_metadata):
                raise Unreadable(f"{name} makes complex numbers")
            order.append(Step(node, name, inputs))
    return order


# ---- the four passes


def slope_loss(output: Tensor, point: Tensor, loss: Callable[[Tensor], Tensor], variables: Sequence[Tensor] = ()) -> Tensor:
    """``loss(g)`` for g the gradient of ``output.sum()`` by ``point``, a scalar whose backward is first order.

    ``output`` was computed from ``point``, a leaf that requires a gradient; its graph is read and not used up. What ``loss``
    makes of g is differentiated by autograd; the gradients by all that the graph was made of are exact. ``variables`` are tensors
    in which the graph may begin though they are no leaves: a tracer's symbols for parameters. Raises Unreadable, without a trace,
    where the graph does not say enough.
    """
    with reading():
        path = steps(output, point)
        g, deltas, doubts = sweep(
            path, output, point, torch.ones_like(output), lambda step: step.curved or step.bilinear is not None
        )
        value, v, unit = direction(g, loss)
    with torch.no_grad(), reading():
        pairs, along, more = _weight_gradients(path, point, output, v, deltas, variables)
        trust = verified(path, along, g, v, doubts + more)
        pairs += _unmoved(path, pairs, get_gradient_edge(point).node, variables)
    return with_gradients(value, pairs, trust, unit)


def direction(g: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """``loss(g)``; v, its derivative by g, in a unit that makes the largest number of v about one; and that unit.

    float16 has nothing below 6e-8, and a loss scale comes by only with the backward pass. The unit is a power of two, which
    rounds nothing.
    """
    with torch.enable_grad():
        leaf = g.detach().to(torch.promote_types(g.dtype, torch.float32)).requires_grad_()
        value = loss(leaf)
        (v,) = torch.autograd.grad(value, leaf)
    exponent = torch.linalg.vector_norm(v, torch.inf).log2().floor()
    unit = torch.where(exponent.isfinite(), exponent.clamp(-100, 100), 0).exp2()
    return value.detach(), v / unit, unit


def sweep(
    path: list[Step], output: Tensor, point: Tensor, upstream: Tensor, wanted: Callable[[Step], bool]
) -> tuple[Tensor, dict[Node, tuple[Tensor | None, ...]], list[Tensor]]:
    """The second pass: the gradient by ``point``, those by what the wanted steps made, and the doubts of :func:`unchanged`."""
    if point._backward_hooks:
        raise Unreadable("the input has a hook")
    deltas: dict[Node, tuple[Tensor | None, ...]] = {}
    nodes = {step.node: step for step in path}
    end = get_gradient_edge(output)
    with unchanged(nodes, nodes, {(end.node, end.output_nr): [upstream]}) as doubts, contextlib.ExitStack() as hooks:
        for node, step in nodes.items():
            if wanted(step):
                hooks.callback(node.register_prehook(functools.partial(deltas.__setitem__, node)).remove)
        (g,) = torch.autograd.grad(output, point, upstream, retain_graph=True, materialize_grads=True)
    return g, deltas, doubts


@contextlib.contextmanager
def unchanged(receivers: Collection[Node], senders: Iterable[Node], sent: dict[Edge, list[Tensor]]) -> Iterator[list[Tensor]]:
    """Raises Unreadable where a receiver gets another gradient in a backward pass than the sum of what the senders sent it.

    ``sent`` is what they get from elsewhere. Where the sum is autograd's own it is made again and compared; the answers, tensors
    that are true if the sum was changed, are what is yielded.
    """
    versions = {id(part): part._version for parts in sent.values() for part in parts}
    changed: list[Node] = []
    doubts: list[Tensor] = []

    def before(node: Node, grads: tuple[Tensor | None, ...]) -> None:
        for number, grad in enumerate(grads):
            parts = sent.pop((node, number), [])
            if grad is None and not parts:
                continue
            if grad is None or not parts or any(part._version != versions[id(part)] for part in parts):
                changed.append(node)
            elif len(parts) > 1 or (parts[0].shape, parts[0].dtype) != (grad.shape, grad.dtype):
                # what was broadcast autograd sums, what was cast it casts back, and then it adds in the order of arrival
                total = functools.reduce(torch.add, (part.sum_to_size(grad.shape).to(grad.dtype) for part in parts))
                doubts.append((grad != total).any())
            elif parts[0] is not grad:
                changed.append(node)

    def after(node: Node, grads: tuple[Tensor | None, ...], _: Any) -> None:
        for grad, edge in zip(grads, node.next_functions, strict=True):
            if grad is not None and edge[0] in receivers:
                versions[id(grad)] = grad._version
                sent.setdefault(edge, []).append(grad)

    with contextlib.ExitStack() as hooks:
        handles = [node.register_prehook(functools.partial(before, node)) for node in receivers]
        handles += [node.register_hook(functools.partial(after, node)) for node in senders]
        for handle in handles:
            hooks.callback(handle.remove)
        if any(len(handle.hooks_dict_ref()) > 1 for handle in handles):
            raise Unreadable("an operation's node has a hook")
        yield doubts
    if changed:
        raise Unreadable(f"a hook changes the gradient of what {operation(changed[0])} made, on its way back")


def verified(path: list[Step], along: Tensor, g: Tensor, v: Tensor, doubts: list[Tensor]) -> Tensor:
    """One if the tangent network's output ``along`` is <v, g>, which gradients that were changed on their way back break, and
    there are no true ``doubts``.

    Otherwise, on the CPU, raises Unreadable. Elsewhere the host would have to wait for the device, and while compiling there is
    no value to look at: there it is NaN instead of one.
    """
    g, v = g.double().flatten(), v.double().flatten()
    # the roundings of the coarsest type on the way, and where g is nothing but roundings, those of numbers of size one
    types = {meta.dtype for step in path for meta in step.node._input_metadata if meta.dtype.is_floating_point}
    eps = max(torch.finfo(dtype).eps for dtype in types or {torch.float32})
    near = max(1e-9, min(0.1, 1e4 * eps)) * torch.linalg.vector_norm(g) + 64 * eps * g.numel() ** 0.5
    off = (along - torch.dot(v, g)).abs() > near * torch.linalg.vector_norm(v)
    off = functools.reduce(torch.logical_or, doubts, off)
    if along.device.type == "cpu" and not torch.compiler.is_compiling():
        if off:
            raise Unreadable("something changes gradients on their way back, such as a hook")
        return along.new_ones(())
    return torch.where(off, torch.nan, 1.0)


def with_gradients(value: Tensor, pairs: list[Pair], trust: Tensor, unit: Tensor) -> Tensor:
    """``value`` as a scalar whose gradients are those, in that unit, each of which is nobody else's; all times ``trust``."""
    trust = trust.to(value.dtype)
    known: Tensor = _Known.apply(value * trust, unit * trust, [grad for _, grad in pairs], *[tensor for tensor, _ in pairs])
    # a backward pass takes the youngest first of what is ready: handed out last, as the oldest, these gradients would lie beside
    # those of all that came after instead of being what they are added to
    if known.grad_fn is not None and hasattr(known.grad_fn, "_set_sequence_nr") and not torch.compiler.is_compiling():
        known.grad_fn._set_sequence_nr(2**63 - 1)
    return known


def _weight_gradients(
    path: list[Step],
    point: Tensor,
    output: Tensor,
    v: Tensor,
    deltas: dict[Node, tuple[Tensor | None, ...]],
    variables: Sequence[Tensor],
) -> tuple[list[Pair], Tensor, list[Tensor]]:
    """The fourth pass: the gradients, the derivative of ``output.sum()`` along v, and doubts. ``deltas`` are used up."""
    source = get_gradient_edge(point).node
    tangents: dict[tuple[Node, int], Tensor] = {(source, 0): v.to(point.dtype)}
    pairs: list[Pair] = []
    waiting = Counter(step.node.next_functions[i] for step in path for i in step.inputs)
    terms: list[Pair] = []
    for step in path:
        given: dict[int, Tensor] = {}
        for i in step.inputs:
            edge = step.node.next_functions[i]
            waiting[edge] -= 1
            if edge in tangents:
                given[i] = tangents[edge] if waiting[edge] else tangents.pop(edge)
        delta = deltas.pop(step.node, ())
        if not given:
            continue
        if step.curved:
            terms += _products(step.node, delta, given) if any(d is not None for d in delta) else []
        elif step.bilinear and delta and delta[0] is not None:
            for i, t in given.items():
                if i in step.bilinear.factors:
                    pairs += step.bilinear.weights(step.node, i, t, delta[0])
        for number, t in tangents_of(step, given):
            tangents[step.node, number] = t
    doubts: list[Tensor] = []
    if terms:
        more, doubts = _flow_back(terms, path, source, variables)
        pairs += more
    end = get_gradient_edge(output)
    last = tangents.get((end.node, end.output_nr))
    return pairs, v.new_zeros((), dtype=torch.float64) if last is None else last.double().sum(), doubts


def tangents_of(step: Step, given: Mapping[int, Tensor]) -> Iterable[tuple[int, Tensor]]:
    """J t by number of output."""
    node, name = step.node, step.name
    if step.bilinear and all(i in step.bilinear.factors for i in given):
        return [(0, step.bilinear.tangent(node, i, t)) for i, t in given.items()]
    if name in DIAGONAL and len(node.next_functions) == 1:
        return [(0, node(given[0]))]
    if name in VIEWS:
        return [(0, given[0].reshape(node._input_metadata[0].shape))]
    if name == "Add" and len(given) == 2 and node._saved_alpha == 1 and given[0].shape == given[1].shape:
        return [(0, given[0] + given[1])]
    return _transposed(node, given)


def _transposed(node: Node, given: Mapping[int, Tensor]) -> Iterable[tuple[int, Tensor]]:
    """J t for any node: its backward makes J^T u of u, and the gradient of <J^T u, t> by u is J t."""
    us = [torch.zeros(m.shape, dtype=m.dtype, device=m.device, requires_grad=True) for m in node._input_metadata]
    terms = _products(node, us, given)
    if not terms:
        return []
    grads = torch.autograd.grad([term for term, _ in terms], us, [t for _, t in terms], allow_unused=True)
    return [(number, t) for number, t in enumerate(grads) if t is not None]


def _products(node: Node, grads: Iterable[Tensor | None], given: Mapping[int, Tensor]) -> list[Pair]:
    """Pairs whose products' sum is <grads, J t>, differentiable by ``grads`` and by the inputs that J depends on."""
    with torch.enable_grad():
        found = node(*grads)
        products = found if isinstance(found, tuple) else (found,)
        # what was broadcast is summed by autograd's engine, not by the node
        return [
            (products[i].sum_to_size(t.shape).to(t.dtype), t)
            for i, t in given.items()
            if products[i] is not None and products[i].requires_grad
        ]


def _flow_back(terms: list[Pair], path: list[Step], source: Node, variables: Sequence[Tensor]) -> tuple[list[Pair], list[Tensor]]:
    """The gradients of the terms' sum by the leaves of their graph, the data left out, and doubts.

    They are a second part of what a weight's own graph gets, a weight's that was computed: that must be linear in it.
    """
    products, tangents = [term for term, _ in terms], [t for _, t in terms]
    made_of = nodes_of((product.grad_fn for product in products), source)
    leaves = leaves_of(made_of, variables)
    if not leaves:
        return [], []
    if any(leaf._backward_hooks for leaf in leaves.values()):
        raise Unreadable("a parameter has a hook, which would be called twice")
    weights = {*aside(path, source)} & {*made_of} - {*leaves}
    for node in weights:
        if not is_linear(node):
            raise Unreadable(f"{operation(node)} is an autograd.Function that a weight goes through")
    senders = [node for node in made_of if any(target in weights for target, _ in node.next_functions)]
    with unchanged(weights, senders, {}) as doubts:
        grads = torch.autograd.grad(products, list(leaves.values()), tangents, retain_graph=True, allow_unused=True)
    # of a sum's terms autograd makes one gradient for both, and of what was expanded one that is no memory of its own
    return [(leaf, grad.clone()) for leaf, grad in zip(leaves.values(), grads, strict=True) if grad is not None], doubts


def aside(path: list[Step], source: Node) -> list[Node]:
    """The nodes of what meets the data: weights, and what they were computed from."""
    others = (edge for step in path for i, edge in enumerate(step.node.next_functions) if i not in step.inputs)
    return nodes_of((target for target, _ in others), source)


def is_linear(node: Node) -> bool:
    """Not an autograd.Function of the user's, whose backward may make anything of a gradient."""
    return callable(node) or type(node)._forward_cls.__module__.startswith("ganfast.")


def _unmoved(path: list[Step], pairs: list[Pair], source: Node, variables: Sequence[Tensor]) -> list[Pair]:
    """Zeros for what only moves kinks, the biases before them: double backward gives them zeros too, and not nothing."""
    kinks = nodes_of((step.node for step in path if step.name in KINKED), source)
    moved = {*nodes_of((get_gradient_edge(tensor).node for tensor, _ in pairs), source)}
    return [(leaf, torch.zeros_like(leaf)) for node, leaf in leaves_of(kinks, variables).items() if node not in moved]


def leaves_of(nodes: Iterable[Node], variables: Sequence[Tensor]) -> dict[Node, Tensor]:
    """Those of the nodes in which the graph begins, and the tensors that they are.

    Raises Unreadable where one is neither a leaf nor one of ``variables``.
    """
    return {node: leaf_of(node, variables) for node in nodes if not any(target for target, _ in node.next_functions)}


def leaf_of(node: Node, variables: Sequence[Tensor]) -> Tensor:
    if operation(node).endswith("AccumulateGrad"):
        variable: Tensor = node.variable
        return variable
    for tensor in variables:
        if tensor.requires_grad and get_gradient_edge(tensor).node is node:
            return tensor
    raise Unreadable(f"its graph begins in {operation(node)}, which is not a leaf")


class _Known(torch.autograd.Function):
    """A value whose gradients by ``tensors`` are ``unit * grads``, which a backward pass takes away unless it keeps the graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, unit: Tensor, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads, ctx.unit = grads, unit
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a penalty's gradient cannot be differentiated: call backward without create_graph")
        if ctx.grads is None:
            raise RuntimeError("a penalty was differentiated a second time: the first backward pass needs retain_graph=True")
        factor, kept, grads = upstream * ctx.unit, _kept(), ctx.grads
        if not kept:
            ctx.grads = None
        return None, None, None, *(_times(factor, grad, kept) for grad in grads)


def _times(factor: Tensor, grad: Tensor, kept: bool) -> Tensor:
    """Their product, in place of the gradient where that is not kept. A loss scale of 2^16 is none of float16's numbers."""
    wide = grad if grad.dtype.itemsize > 2 else grad.to(factor.dtype)
    return wide * factor if kept and wide is grad else wide.mul_(factor).to(grad.dtype)


def _kept() -> bool:
    """Whether the backward pass that is under way keeps its graph."""
    kept: bool = torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()
    return kept
