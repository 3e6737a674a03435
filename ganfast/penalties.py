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
- under ``torch.no_grad`` the value is right and carries no graph.

Everything refused is an :class:`~ganfast.errors.InvalidValue` or :class:`~ganfast.errors.InvalidType`.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook

from ganfast import tangent
from ganfast.errors import InvalidType, InvalidValue, near

Critic = Callable[[Tensor], Tensor]

_EXCESS: dict[str, Callable[[Tensor], Tensor]] = {"two-sided": lambda excess: excess, "one-sided": torch.relu}


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
) -> Tensor:
    """``weight * E[(|grad D(x)| - target)^2]`` at ``x = alpha * real + (1 - alpha) * fake`` (Gulrajani et al. 2017, equation 3).

    ``real`` and ``fake`` are (N, ...) of one shape. One alpha per sample is drawn uniformly on the data's device, from
    ``generator`` or torch's default one; ``alpha`` (N,) fixes them. ``kind="one-sided"`` charges only slopes above ``target``
    (the paper's section 4). A sample whose slope is exactly zero pays ``target^2`` and contributes a zero gradient, not NaN.
    """
    if kind not in _EXCESS:
        raise InvalidValue(f"gradient_penalty has no kind {kind!r}{near(kind, _EXCESS)}")
    if not target >= 0:
        raise InvalidValue(f"expected a target slope >= 0, got {target}")
    point = _interpolate(real, fake, generator, alpha)
    excess = _EXCESS[kind]
    return _penalty(critic, point, weight, lambda g: excess(torch.linalg.vector_norm(g, dim=1) - target).square())


def r1_penalty(critic: Critic, real: Tensor, *, weight: float) -> Tensor:
    """``weight / 2 * E[|grad D(real)|^2]`` at real data (N, ...) (Mescheder et al. 2018, equation 9)."""
    _check_samples("real", real)
    return _penalty(critic, real.detach(), weight, lambda g: g.square().sum(dim=1) / 2)


def r2_penalty(critic: Critic, fake: Tensor, *, weight: float) -> Tensor:
    """``weight / 2 * E[|grad D(fake)|^2]`` at generated data (N, ...) (Mescheder et al. 2018, equation 10)."""
    _check_samples("fake", fake)
    return _penalty(critic, fake.detach(), weight, lambda g: g.square().sum(dim=1) / 2)


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


def penalty_plan(critic: Critic, samples: Tensor | None = None) -> PenaltyPlan:
    """How the penalties compute their gradient for this critic, and why.

    ``samples`` (N, ...) is a batch such as the critic gets; without one, a module's first layer tells what to try. A module is
    copied before, so nothing of it moves. Raises InvalidValue for a critic that no penalty takes, and where no batch was found.
    """
    if isinstance(critic, nn.Module):
        critic = copy.deepcopy(critic)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        point = _sample_for(critic) if samples is None else samples.detach().clone()
        _check_samples("plan", point)
        output = _output(critic, point.requires_grad_())
    try:
        path = tangent.steps(output, point)
        tangent.slope_loss(output, point, lambda g: g.square().sum())  # which also finds what only shows on the way
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


def _interpolate(real: Tensor, fake: Tensor, generator: torch.Generator | None, alpha: Tensor | None) -> Tensor:
    _check_samples("real", real)
    _check_samples("fake", fake)
    if real.shape != fake.shape:
        raise InvalidValue(f"expected real and fake of one shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    if real.device != fake.device:
        raise InvalidValue(f"expected real and fake on one device, got {real.device} and {fake.device}")
    n, dtype = real.shape[0], torch.promote_types(real.dtype, fake.dtype)
    # bfloat16 has only 256 values of alpha between a half and one: draw and mix in float32 at least
    wide = torch.promote_types(dtype, torch.float32)
    if alpha is None:
        alpha = torch.rand(n, device=real.device, dtype=wide, generator=generator)
    elif alpha.shape != (n,):
        raise InvalidValue(f"expected one alpha per sample, ({n},), got {tuple(alpha.shape)}")
    mix = alpha.detach().to(real.device, wide).view(n, *[1] * (real.dim() - 1))
    return torch.lerp(fake.detach().to(wide), real.detach().to(wide), mix).to(dtype)


def _penalty(critic: Critic, point: Tensor, weight: float, of_each: Callable[[Tensor], Tensor]) -> Tensor:
    """``weight`` times the mean of what ``of_each`` (N, D) -> (N,) makes of the gradients by each sample of ``point``."""
    if not weight >= 0:
        raise InvalidValue(f"expected a penalty weight >= 0, got {weight}")

    def loss(grad: Tensor) -> Tensor:
        return weight * of_each(grad.flatten(1).to(torch.promote_types(grad.dtype, torch.float32))).mean()

    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        point = point.requires_grad_()
        output = _output(critic, point)
        # autocast would round the products of what follows again: they have the dtypes that the forward pass chose
        with torch.autocast(point.device.type, enabled=False):
            if learning:
                try:
                    return tangent.slope_loss(output, point, loss)
                except tangent.Unreadable:
                    pass
            (grad,) = torch.autograd.grad(output.sum(), point, create_graph=learning, materialize_grads=True)
            return loss(grad)


def _output(critic: Critic, point: Tensor) -> Tensor:
    critic = getattr(critic, "_orig_mod", critic)  # of torch.compile, whose one node tells nothing and has no second derivative
    # every module call is looked at, so it does not matter what kind of function holds the critic
    watch = register_module_forward_pre_hook(_refuse_batch_norm)
    try:
        output = critic(point)
    finally:
        watch.remove()
    _check_output(output, point.shape[0])
    return output


def _refuse_batch_norm(module: nn.Module, inputs: object) -> None:
    if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
        raise InvalidValue(
            f"the critic has {type(module).__name__} in training mode: batch statistics make every output depend on every "
            "sample, so a slope per sample does not exist; use LayerNorm, InstanceNorm, spectral norm or none"
        )


def _check_samples(side: str, samples: Tensor) -> None:
    if not samples.is_floating_point():
        raise InvalidType(f"expected {side} samples in a floating point type, got {samples.dtype}")
    if samples.dim() < 2 or samples.shape[0] == 0:
        raise InvalidValue(f"expected {side} samples (N, ...) with N >= 1, got {tuple(samples.shape)}")


def _check_output(output: object, n: int) -> None:
    if not isinstance(output, Tensor):
        raise InvalidType(f"expected the critic to return a tensor, got {type(output).__name__}")
    shape = tuple(output.shape)
    if shape[:1] != (n,) or (len(shape) > 1 and shape[1] != 1):
        got = ", ".join("N" if axis == 0 and size == n else str(size) for axis, size in enumerate(shape))
        got += "," * (len(shape) == 1)
        raise InvalidValue(f"expected critic output (N,) or (N, 1), got ({got}); N is {n}, and patches are (N, 1, h, w)")
    if not output.requires_grad:
        raise InvalidValue("the critic's output carries no gradient to its input: it was detached or computed under no_grad")
