r"""Batch norm with the activation behind it, forward and backward (Ioffe & Szegedy 2015, algorithm 1).

For x (N, C, ...), whose batch is cut into ``groups`` of N / groups consecutive samples, with the mean and the biased variance
of each channel over a group's samples and positions, m values in all:

    x^ = (x - mean) / sqrt(var + eps),    z = weight x^ + bias,    y = act(z)

act(z) is z where that is positive and ``slope`` z elsewhere: 1 is no activation, 0 is ReLU, anything else LeakyReLU. Where
``tanh``, act is tanh and slope means nothing. ``weight`` and ``bias`` (C,) are both there or both missing. Real and generated
samples in one batch of two groups keep the statistics that each had alone.

With dz = dy act'(z), sums over a group:

    dbias = sum dz,    dweight = sum dz x^,    dx = weight / sqrt(var + eps) (dz - sum dz / m - x^ sum(dz x^) / m)

and dbias and dweight are summed over the groups. Only x is kept for that: x^, z and act' are made again from x, mean and var,
which moves fewer bytes than keeping them would. act'(0) is slope.

Statistics, weight and bias are float32 whatever x is (float64 for float64); x, y and their gradients have x's dtype and layout:
channels last and contiguous are read as they are. Sums are made over tiles of fixed size and merged in a fixed order (Chan,
Golub & LeVeque 1983), so a result does not depend on the number of threads and is the same in every run. A channel of one value
has variance zero, and NaN and Inf stay within their group and channel.

``batch_norm_act_tracked`` also moves running statistics (C,), in place and in the same kernels, by ``momentum`` towards those of
each group in turn, the variance unbiased, and counts the groups: what ``nn.BatchNorm2d`` keeps.

``normalise_act`` gives the same y by statistics that are known already, to the bit where they are those of x: for y that is made
once more, and for evaluation. Nothing is differentiated through it.

Bytes that must move, |x| those of x: 3 |x| forward (two readings, one writing), 2 |x| where statistics are known, 5 |x| backward
(dy and x twice, dx once).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ganfast.ops.library import Differentiable, Op, below_autograd, register, without_gradient

Triple = tuple[Tensor, Tensor, Tensor]


def batch_norm_act_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, slope: float, tanh: bool
) -> Triple:
    """y (N, C, ...), mean and biased var (groups, C)."""
    _check(x, weight, bias, groups)
    y, mean, var = _plain(x, weight, bias, groups, eps, slope, tanh)
    return torch.empty_like(x).copy_(y), mean, var


def batch_norm_act_tracked_reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
    tanh: bool,
    running_mean: Tensor,
    running_var: Tensor,
    counted: Tensor | None,
    momentum: float,
) -> Triple:
    """y (N, C, ...), mean and biased var (groups, C)."""
    y, mean, var = batch_norm_act_reference(x, weight, bias, groups, eps, slope, tanh)
    _check_tracked(x, groups, running_mean, running_var, counted)
    # not in autograd's sight, which kernels keep them out of too: another call's backward may hold them
    track(running_mean.data, running_var.data, counted, momentum, mean, var, x.numel() // mean.numel())
    return y, mean, var


def _check_tracked(x: Tensor, groups: int, running_mean: Tensor, running_var: Tensor, counted: Tensor | None) -> None:
    if x.numel() <= x.shape[1] * groups:
        raise ValueError(f"expected more than one value a channel, got {tuple(x.shape)}")
    for statistic in (running_mean, running_var):
        if statistic.shape != x.shape[1:2] or statistic.dtype != torch.promote_types(x.dtype, torch.float32):
            expected = f"expected running statistics ({x.shape[1]},) in the type of the batch's"
            raise ValueError(f"{expected}, got {tuple(statistic.shape)}")
    if counted is not None and (counted.numel() != 1 or counted.dtype != torch.int64):
        raise ValueError(f"expected a count in int64, got {tuple(counted.shape)}")


@torch.no_grad()
def track(
    running_mean: Tensor,
    running_var: Tensor,
    counted: Tensor | None,
    momentum: float | None,
    means: Tensor,
    variances: Tensor,
    values: int,
) -> None:
    """Move the running statistics by those of each group, (groups, C), of ``values`` values a channel, one after the other.

    Without ``momentum`` they are the average over all groups that were counted.
    """
    weight: Any = 0.0 if momentum is None else momentum
    for mean, var in zip(means.unbind(), (variances * (values / (values - 1))).unbind(), strict=True):
        if counted is not None:
            counted.add_(1)
            if momentum is None:
                weight = counted.to(mean.dtype).reciprocal()
        for running, found in ((running_mean, mean), (running_var, var)):
            running.mul_(1 - weight).add_(found * weight)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> None:
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"expected x (N, C, ...) with at least one value, got {tuple(x.shape)}")
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"expected groups that divide the batch of {x.shape[0]}, got {groups}")
    if (weight is None) != (bias is None):
        raise ValueError("expected weight and bias, or neither")
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[1:2]:
            raise ValueError(f"expected {name} ({x.shape[1]},), got {tuple(parameter.shape)}")


def _plain(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, slope: float, tanh: bool) -> Triple:
    grouped = _grouped(x.to(torch.promote_types(x.dtype, torch.float32)), groups)
    var, mean = torch.var_mean(grouped, dim=(1, 3), correction=0)
    return _known(x, grouped, weight, bias, mean, var, eps, slope, tanh), mean, var


def _known(
    x: Tensor,
    grouped: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> Tensor:
    wide, hat = grouped.dtype, _normalised(grouped, mean, var, eps)
    z = hat if weight is None or bias is None else hat * weight.to(wide).view(-1, 1) + bias.to(wide).view(-1, 1)
    return _activated(z, slope, tanh).reshape(x.shape).to(x.dtype)


def normalise_act_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float, slope: float, tanh: bool
) -> Tensor:
    """y (N, C, ...), by a mean and a biased var (groups, C)."""
    _check(x, weight, bias, mean.shape[0] if mean.dim() == 2 else 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    for statistic in (mean, var):
        if statistic.shape != (mean.shape[0], x.shape[1]) or statistic.dtype != wide:
            expected = f"expected mean and var (groups, {x.shape[1]}), as the forward pass gave them"
            raise ValueError(f"{expected}, got {tuple(statistic.shape)}")
    grouped = _grouped(x.to(wide), mean.shape[0])
    return torch.empty_like(x).copy_(_known(x, grouped, weight, bias, mean, var, eps, slope, tanh))


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(N, C, ...) as (groups, N / groups, C, positions)."""
    return x.reshape(groups, x.shape[0] // groups, x.shape[1], -1)


def _normalised(grouped: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return (grouped - mean[:, None, :, None]) * (var + eps).rsqrt()[:, None, :, None]


def _activated(z: Tensor, slope: float, tanh: bool) -> Tensor:
    if tanh:
        return z.tanh()
    if slope == 0:
        return z.relu()
    return z if slope == 1 else torch.where(z > 0, z, z * slope)


def _fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float, slope: float, tanh: bool) -> Triple:
    mean = x.new_empty((groups, x.shape[1]), dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x), mean, torch.empty_like(mean)


def batch_norm_act_backward_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> Triple:
    """dx (N, C, ...), dweight and dbias (C,), which mean nothing without weight and bias."""
    dx, dweight, dbias = _backward_plain(grad, x, weight, bias, mean, var, eps, slope, tanh)
    return torch.empty_like(x).copy_(dx), dweight, dbias


def _backward_plain(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> Triple:
    wide, groups = mean.dtype, mean.shape[0]
    dy, hat = _grouped(grad.to(wide), groups), _normalised(_grouped(x.to(wide), groups), mean, var, eps)
    scale = torch.ones_like(mean[0]) if weight is None else weight.to(wide)
    z = hat * scale.view(-1, 1) + (0 if bias is None else bias.to(wide).view(-1, 1))
    dz = dy * (1 - z.tanh().square()) if tanh else torch.where(z > 0, dy, dy * slope)
    m = hat.shape[1] * hat.shape[3]
    sums, products = dz.sum((1, 3)), (dz * hat).sum((1, 3))
    centred = dz - (sums / m)[:, None, :, None] - hat * (products / m)[:, None, :, None]
    dx = centred * (scale * (var + eps).rsqrt())[:, None, :, None]
    return dx.reshape(x.shape).to(x.dtype), products.sum(0), sums.sum(0)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    slope: float,
    tanh: bool,
) -> Triple:
    return torch.empty_like(x), mean.new_empty(x.shape[1]), mean.new_empty(x.shape[1])


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any) -> Triple:
        return _found(ctx, batch_norm_act, x, weight, bias, *arguments)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        constants = (None,) * ctx.constants
        if grad is None:
            return None, None, None, *constants
        x, weight, bias, mean, var = ctx.saved_tensors
        dx, dweight, dbias = batch_norm_act_backward(grad, x, weight, bias, mean, var, *ctx.arguments)
        if weight is None:
            return dx, None, None, *constants
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), *constants


class _BatchNormActTracked(_BatchNormAct):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any) -> Triple:
        return _found(ctx, batch_norm_act_tracked, x, weight, bias, *arguments)


def _found(ctx: Any, op: Op, x: Tensor, weight: Tensor | None, bias: Tensor | None, *arguments: Any) -> Triple:
    y, mean, var = below_autograd(op.overload, x, weight, bias, *arguments)
    without_gradient(ctx, mean, var)
    ctx.save_for_backward(x, weight, bias, mean, var)
    ctx.arguments, ctx.constants = arguments[1:4], len(arguments)
    return y, mean, var


class _Backward(torch.autograd.Function):
    """Its backward is autograd's of the page's formulas, the statistics' dependence on x included: rare, and so of any order."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any) -> Triple:
        ctx.save_for_backward(grad, x, weight, bias)
        ctx.groups, ctx.arguments = others[0].shape[0], others[2:]
        found: Triple = below_autograd(batch_norm_act_backward.overload, grad, x, weight, bias, *others)
        return found

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Any, ...]:
        with torch.enable_grad():
            inputs: list[Any] = [None if t is None else _variable(t) for t in ctx.saved_tensors]
            grad, x, weight, bias = inputs
            wide = torch.promote_types(x.dtype, torch.float32)
            var, mean = torch.var_mean(_grouped(x.to(wide), ctx.groups), dim=(1, 3), correction=0)
            outputs = _backward_plain(grad, x, weight, bias, mean, var, *ctx.arguments)
            there = [t for t in inputs if t is not None]
            grads = iter(torch.autograd.grad(outputs, there, second, create_graph=True, allow_unused=True))
        return *(None if t is None else next(grads) for t in inputs), None, None, None, None, None


def _variable(t: Tensor) -> Any:
    """``t`` as a variable of its own: by one input alone means that the others stand still, whatever they are functions of."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


batch_norm_act = register(
    "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, float slope, bool tanh)"
    " -> (Tensor, Tensor, Tensor)",
    reference=batch_norm_act_reference,
    fake=_fake,
    differentiable=Differentiable(_BatchNormAct.apply, _plain),
)
batch_norm_act_tracked = register(
    "batch_norm_act_tracked(Tensor x, Tensor? weight, Tensor? bias, int groups, float eps, float slope, bool tanh,"
    " Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? counted, float momentum) -> (Tensor, Tensor, Tensor)",
    reference=batch_norm_act_tracked_reference,
    fake=lambda x, weight, bias, groups, eps, slope, tanh, *_: _fake(x, weight, bias, groups, eps, slope, tanh),
    differentiable=Differentiable(_BatchNormActTracked.apply, batch_norm_act_tracked_reference),
)
normalise_act = register(
    "normalise_act(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps, float slope, bool tanh) -> Tensor",
    reference=normalise_act_reference,
    fake=lambda x, *_: torch.empty_like(x),
)
batch_norm_act_backward = register(
    "batch_norm_act_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, float eps,"
    " float slope, bool tanh) -> (Tensor, Tensor, Tensor)",
    reference=batch_norm_act_backward_reference,
    fake=_backward_fake,
    differentiable=Differentiable(_Backward.apply, _backward_plain),
)


def activates(overload: Callable[..., Any], arguments: Sequence[Any]) -> bool:
    """Whether a call, as the dispatcher sees it, is evaluation's batch norm with an activation in its end."""
    return overload is normalise_act.overload and (arguments[6] != 1 or arguments[7])
