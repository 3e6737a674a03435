"""Gradient penalties: what a critic pays for its slope.

Each takes a critic and data, differentiates the critic's output by its input, and returns a scalar whose backward reaches the
critic's parameters. They share their contract:

- the data (N, ...) is detached: a penalty trains the critic, never the generator;
- a critic returns (N,), (N, 1) or patches (N, 1, h, w). Patch outputs are summed per sample, as CycleGAN's and pix2pix's code
  does, so that the slope penalised is that of the whole verdict and grows with the number of patches;
- a slope is the gradient over *all* of one sample's dimensions, which presumes that samples do not influence each other: batch
  norm in training mode is refused;
- under autocast the critic runs in the low precision, and norms and their coefficients in float32 (float64 for float64 data);
- the gradient is exact, and computed with the value, without double backward (:mod:`ganfast.tangent`): the backward pass of a
  penalty only scales it, and cannot be differentiated again. :func:`penalty_plan` says what a critic costs;
- ``conditions`` are tensors that the critic is called with besides, such as labels: ``critic(x, *conditions)``, each (N, ...);
- a penalty that is taken in every k-th step only (Karras et al. 2020, "lazy") is multiplied by k where it is taken;
- under ``torch.no_grad`` the value is right and carries no graph;
- within ``torch.compile`` a critic that is a module is compiled with the rest, in one graph; any other callable breaks it, and
  so does a module that cannot be traced or has an autograd.Function of its own.

Everything refused is an :class:`~ganfast.errors.InvalidValue` or :class:`~ganfast.errors.InvalidType`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from ganfast import apart, joint, tangent
from ganfast.errors import InvalidType, InvalidValue, near
from ganfast.joint import Losses
from ganfast.ops.gradient_penalty import interpolate, slope_penalty

Critic = Callable[..., Tensor]

_TIED = (
    "the critic has {} in training mode: batch statistics make every output depend on every sample, so a slope per sample does "
    "not exist; use LayerNorm, InstanceNorm, spectral norm or none"
)
_KINDS = ("two-sided", "one-sided")


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    target: float = 1.0,
    weight: float = 10.0,
    kind: str = "two-sided",
    generator: torch.Generator | None = None,
    alpha: Tensor | None = None,
    conditions: Sequence[Tensor] = (),
) -> Tensor:
    """``weight * E[(|grad D(x)| - target)^2]`` at ``x = alpha * real + (1 - alpha) * fake`` (Gulrajani et al. 2017, equation 3).

    ``real`` and ``fake`` are (N, ...) of one shape. One alpha per sample is drawn uniformly on the data's device, from
    ``generator`` or torch's default one; ``alpha`` (N,) fixes them. ``kind="one-sided"`` charges only slopes above ``target``
    (the paper's section 4). A sample whose slope is exactly zero pays ``target^2`` and contributes a zero gradient, not NaN.
    """
    one_sided = _checked(critic, real, fake, target, weight, kind, conditions)
    points = interpolate(real.detach(), fake.detach(), _alpha(real, fake, generator, alpha), False)
    return _penalty(critic, points, conditions, target, weight, one_sided)


def penalised_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    target: float = 1.0,
    weight: float = 10.0,
    kind: str = "two-sided",
    generator: torch.Generator | None = None,
    alpha: Tensor | None = None,
    conditions: Sequence[Tensor] = (),
) -> Losses:
    """``loss(D(real), D(fake))`` and :func:`gradient_penalty` by one pass of the critic over a batch of 3N.

    Each weight has one gradient for all of it, which is fewer and larger products (:mod:`ganfast.joint`). ``total`` of what is
    returned has the gradient; ``adversarial``, ``penalty`` and the scores ``real`` and ``fake`` are values alone. That needs a
    module whose graph is linear in pieces, and which is proven to keep samples apart (:mod:`ganfast.apart`). Any other critic has
    three passes, and so has every one within torch.compile and under autocast to float16, and one that does something else in
    every call. ``conditions`` are those of real and of fake samples alike.
    """
    one_sided = _checked(critic, real, fake, target, weight, kind, conditions)
    drawn = _alpha(real, fake, generator, alpha)
    real, fake = real.detach(), fake.detach()

    def scalar(real: Tensor, fake: Tensor) -> Tensor:
        value = loss(real, fake)
        _check_loss(value, real.requires_grad or fake.requires_grad)
        return value

    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and isinstance(critic, nn.Module):
        batch = interpolate(real, fake, drawn, True)
        whole = [condition.repeat(3, *[1] * (condition.dim() - 1)) for condition in conditions]
        with contextlib.suppress(tangent.Unreadable):
            output = _apart_scores(critic, batch.requires_grad_(), whole)
            try:
                with torch.autocast(batch.device.type, enabled=False):
                    return joint.joint_loss(output, batch, scalar, lambda g: slope_penalty(g, target, weight, one_sided)[0])
            except tangent.Unreadable:
                _APART[critic] = None
    penalty = _penalty(critic, interpolate(real, fake, drawn, False), conditions, target, weight, one_sided)
    scores = critic(real, *conditions), critic(fake, *conditions)
    adversarial = scalar(*scores)
    values = (value.detach() for value in (adversarial, penalty, *scores))
    return Losses(adversarial + penalty, *values)


# The fingerprints of critics that were tried, and None for those that three passes are for.
_APART: weakref.WeakKeyDictionary[nn.Module, set[int] | None] = weakref.WeakKeyDictionary()
_FORMS = 8


def _apart_scores(critic: nn.Module, batch: Tensor, conditions: Sequence[Tensor]) -> Tensor:
    """Scores of a batch of 3N, whose samples were proven to be kept apart. Raises Unreadable otherwise, and from then on."""
    proven = _APART.setdefault(critic, set())
    if proven is None:
        raise tangent.Unreadable("it was not proven before")
    try:
        if not proven:  # on a copy first, before anything of the critic moves
            proven |= apart.tried(critic, output_of, batch, conditions)
        output, seen = apart.watched(lambda: output_of(critic, batch, conditions), batch, *conditions)
        if seen not in proven:
            proven |= apart.tried(critic, output_of, batch, conditions)
        if seen not in proven or len(proven) > _FORMS:
            raise tangent.Unreadable("it does something else in every call")
    except tangent.Unreadable:
        _APART[critic] = None
        raise
    return output


def r1_penalty(critic: Critic, real: Tensor, *, weight: float, conditions: Sequence[Tensor] = ()) -> Tensor:
    """``weight / 2 * E[|grad D(real)|^2]`` at real data (N, ...) (Mescheder et al. 2018, equation 9)."""
    _check_one(critic, "real", real, weight, conditions)
    return _penalty(critic, real.detach(), conditions, 0.0, float(weight) / 2, False)


def r2_penalty(critic: Critic, fake: Tensor, *, weight: float, conditions: Sequence[Tensor] = ()) -> Tensor:
    """``weight / 2 * E[|grad D(fake)|^2]`` at generated data (N, ...) (Mescheder et al. 2018, equation 10)."""
    _check_one(critic, "fake", fake, weight, conditions)
    return _penalty(critic, fake.detach(), conditions, 0.0, float(weight) / 2, False)


@dataclass(frozen=True)
class PenaltyPlan:
    """How a penalty's gradient is computed for a critic; as text, a sentence that says so and why.

    ``kind`` is "four passes", "six passes" or "double backward"; ``operations`` counts what lies between a critic's input and
    its output, ``curved`` those of it whose Jacobian may depend on their inputs, by name.
    """

    kind: str
    operations: int
    curved: Mapping[str, int]
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"

    __repr__ = __str__


def penalty_plan(critic: Critic, samples: Tensor | None = None, *, conditions: Sequence[Tensor] = ()) -> PenaltyPlan:
    """How the penalties compute their gradient for this critic, and why.

    ``samples`` (N, ...) is a batch such as the critic gets, with its ``conditions``; without one, a module's first layer tells
    what to try. A module is copied before where it can be, so that nothing of it moves. Raises InvalidValue for a critic that
    no penalty takes, and where no batch was found.
    """
    _check_critic(critic)
    critic = getattr(critic, "_orig_mod", critic)
    if isinstance(critic, nn.Module):
        with contextlib.suppress(Exception):  # a process group, a lock: whatever cannot be copied
            critic = copy.deepcopy(critic)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        point = _sample_for(critic) if samples is None else samples.detach().clone()
        _check_samples("plan", point, conditions)
        output = output_of(critic, point.requires_grad_(), conditions)
    try:
        path = tangent.steps(output, point)
        tangent.slope_loss(output, point, lambda g: g.square().sum())  # which finds what only shows on the way
    except tangent.Unreadable as error:
        return PenaltyPlan("double backward", 0, {}, str(error))
    curved = Counter(step.name for step in path if step.curved)
    if not curved:
        reason = f"{len(path)} operations, all with a Jacobian that is constant in pieces"
        return PenaltyPlan("four passes", len(path), {}, reason)
    named = ", ".join(f"{n} {name}" for name, n in curved.items())
    reason = f"{len(path)} operations, of which these have a Jacobian that may depend on their inputs: {named}"
    return PenaltyPlan("six passes", len(path), dict(curved), reason)


def _sample_for(critic: Critic) -> Tensor:
    """Two samples of a shape that the critic takes, guessed from its first layer."""
    for layer in critic.modules() if isinstance(critic, nn.Module) else ():
        if isinstance(layer, nn.Linear):
            shapes: list[tuple[int, ...]] = [(layer.in_features,)]
        elif isinstance(layer, _ConvNd):
            shapes = [(layer.in_channels, *[size] * len(layer.kernel_size)) for size in (32, 64, 28, 128, 16, 48, 96, 256, 8)]
        else:
            continue
        for shape in shapes:
            sample = torch.randn(2, *shape, dtype=layer.weight.dtype, device=layer.weight.device)
            with contextlib.suppress(RuntimeError, ValueError), torch.no_grad():
                critic(sample)
                return sample
        break
    raise InvalidValue("found no batch that the critic takes: give one, penalty_plan(critic, samples)")


def _alpha(real: Tensor, fake: Tensor, generator: torch.Generator | None, alpha: Tensor | None) -> Tensor:
    """One a sample, drawn where the data are."""
    n = real.shape[0]
    if alpha is None:
        # bfloat16 has only 256 values between a half and one
        dtype = functools.reduce(torch.promote_types, (real.dtype, fake.dtype, torch.float32))
        return torch.rand(n, device=real.device, dtype=dtype, generator=generator)
    if not isinstance(alpha, Tensor):
        raise InvalidType(f"expected alpha as a tensor ({n},), got {type(alpha).__name__}")
    if alpha.shape != (n,):
        raise InvalidValue(f"expected one alpha per sample, ({n},), got {tuple(alpha.shape)}")
    return alpha.detach().to(real.device)


def _penalty(
    critic: Critic, point: Tensor, conditions: Sequence[Tensor], target: float, weight: float, one_sided: bool
) -> Tensor:
    """``weight`` times the mean over samples of the slope's squared excess over ``target``, at ``point``."""
    critic = getattr(critic, "_orig_mod", critic)  # of torch.compile
    arguments = (critic, point, tuple(conditions), float(target), float(weight), one_sided)
    if torch.compiler.is_compiling():
        from ganfast import compiled  # whose import of the compiler is made by now

        return compiled.value_and_gradient(*arguments)
    return value_and_gradient(*arguments)


def value_and_gradient(
    critic: Critic, point: Tensor, conditions: Sequence[Tensor], target: float, weight: float, one_sided: bool
) -> Tensor:
    """A penalty at a batch of its own, ``point``."""
    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        output = output_of(critic, point, conditions)
    return slope_of(output, point, (), target, weight, one_sided, learning)


def slope_of(
    output: Tensor,
    point: Tensor,
    variables: Sequence[Tensor],
    target: float,
    weight: float,
    one_sided: bool,
    learning: bool,
) -> Tensor:
    """A penalty of scores that were computed at ``point``, and where ``learning`` its gradient."""

    def loss(g: Tensor) -> Tensor:
        value: Tensor = slope_penalty(g, target, weight, one_sided)[0]
        return value

    # autocast would round the products of what follows again: they have the dtypes that the forward pass chose
    with torch.enable_grad(), torch.autocast(point.device.type, enabled=False):
        if learning:
            with contextlib.suppress(tangent.Unreadable):
                return tangent.slope_loss(output, point, loss, variables)
        (g,) = torch.autograd.grad(output.sum(), point, create_graph=learning, materialize_grads=True)
        return loss(g)


def output_of(critic: Critic, point: Tensor, conditions: Sequence[Tensor]) -> Tensor:
    """The critic's scores, with their graph."""
    # the fused attentions have no second derivative, and on the CPU none of their backward
    with _as_written(), _refusing_batch_norm(), sdpa_kernel(SDPBackend.MATH):
        output = critic(point, *conditions)
    _check_output(output, point.shape[0])
    if not output.requires_grad:
        raise InvalidValue(
            "the critic's output carries no gradient to its input: it was detached, or computed under no_grad or inference_mode"
        )
    if not torch.compiler.is_compiling() and any(map(ties, tangent.nodes_of([output.grad_fn]))):
        raise InvalidValue(_TIED.format("batch norm"))
    return output


def ties(node: tangent.Node) -> bool:
    """Whether it takes statistics over samples. Instance norm is the same operation on one row."""
    name = tangent.operation(node)
    if "BatchNorm" not in name or "NoTraining" in name or not getattr(node, "_saved_training", True):
        return False
    return bool(node._input_metadata[0].shape[0] > 1)


def _as_written() -> contextlib.AbstractContextManager[Any]:
    """Not as torch.compile made it, of which the graph is one node that tells nothing and has no second derivative."""
    if "torch._dynamo" not in sys.modules or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    eager: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


@contextlib.contextmanager
def _refused(watch: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        watch.remove()


def _refusing_batch_norm() -> contextlib.AbstractContextManager[Any]:
    """Looks at every call of a module, so that it does not matter what kind of function holds the critic."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _refused(register_module_forward_pre_hook(_refuse_batch_norm))


def _refuse_batch_norm(module: nn.Module, inputs: object) -> None:
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        raise InvalidValue(_TIED.format(type(module).__name__))


def _check_critic(critic: object) -> None:
    if not callable(critic):
        raise InvalidType(f"expected the critic as a module or function, got {type(critic).__name__}")


def _check_number(name: str, value: object) -> None:
    if not hasattr(value, "__float__"):
        raise InvalidType(f"expected {name} as a number, got {type(value).__name__}")
    if not value >= 0:  # type: ignore[operator]
        raise InvalidValue(f"expected {name} >= 0, got {value}")


def _check_one(critic: object, side: str, samples: Tensor, weight: float, conditions: Sequence[Tensor]) -> None:
    _check_critic(critic)
    _check_number("a penalty weight", weight)
    _check_samples(side, samples, conditions)
    if not torch.compiler.is_compiling() and samples.is_inference():
        raise InvalidValue(f"expected {side} samples that autograd can follow, got some made under inference_mode: clone them")


def _checked(
    critic: object, real: Tensor, fake: Tensor, target: float, weight: float, kind: str, conditions: Sequence[Tensor]
) -> bool:
    """Whether the penalty is one-sided; raises for arguments that mean nothing."""
    _check_critic(critic)
    if kind not in _KINDS:
        raise InvalidValue(f"gradient_penalty has no kind {kind!r}{near(str(kind), _KINDS)}")
    _check_number("a target slope", target)
    _check_number("a penalty weight", weight)
    _check_samples("real", real, conditions)
    _check_samples("fake", fake, conditions)
    if real.shape != fake.shape:
        raise InvalidValue(f"expected real and fake of one shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    if real.device != fake.device:
        raise InvalidValue(f"expected real and fake on one device, got {real.device} and {fake.device}")
    return kind == "one-sided"


def _check_samples(side: str, samples: Tensor, conditions: Sequence[Tensor]) -> None:
    if not isinstance(samples, Tensor):
        raise InvalidType(f"expected {side} samples as a tensor, got {type(samples).__name__}")
    if not samples.is_floating_point():
        raise InvalidType(f"expected {side} samples in a floating point type, got {samples.dtype}")
    if samples.dim() < 2 or samples.shape[0] == 0:
        raise InvalidValue(f"expected {side} samples (N, ...) with N >= 1, got {tuple(samples.shape)}")
    if not isinstance(conditions, list | tuple):
        raise InvalidType(f"expected conditions as a tuple of tensors, such as (labels,), got {type(conditions).__name__}")
    for condition in conditions:
        if not isinstance(condition, Tensor):
            raise InvalidType(f"expected every condition as a tensor, got {type(condition).__name__}")
        if condition.shape[:1] != samples.shape[:1]:
            got = tuple(condition.shape)
            raise InvalidValue(f"expected a condition for each sample, ({samples.shape[0]}, ...), got {got}")


def _check_output(output: object, n: int) -> None:
    if not isinstance(output, Tensor):
        raise InvalidType(f"expected the critic to return a tensor, got {type(output).__name__}")
    shape = tuple(output.shape)
    if shape[:1] != (n,) or (len(shape) > 1 and shape[1] != 1):
        got = ", ".join("N" if axis == 0 and size == n else str(size) for axis, size in enumerate(shape))
        got += "," * (len(shape) == 1)
        raise InvalidValue(f"expected critic output (N,) or (N, 1), got ({got}); N is {n}, and patches are (N, 1, h, w)")


def _check_loss(value: object, learning: bool) -> None:
    if not isinstance(value, Tensor):
        raise InvalidType(f"expected the loss to return a tensor, got {type(value).__name__}")
    if value.shape != ():
        raise InvalidValue(f"expected the loss to return a scalar, got {tuple(value.shape)}")
    if learning and not value.requires_grad:
        raise InvalidValue("the loss carries no gradient to the scores")
