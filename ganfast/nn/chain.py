"""Convolution, batch norm and activation as one call, which gives what the three would have given one after the other.

:func:`chain` looks at what it is called with, every time: hooks, modes, types and attributes may change at will, and whatever it
does not know it calls as it is. In training, batch norm's op (:mod:`ganfast.ops.batch_norm`) normalises and activates in one
pass, where a device has a kernel for it. In evaluation, a convolution takes batch norm into its weight, by operations that
autograd and exporters follow: for weight W, bias b and s = gamma / sqrt(running_var + eps),

    norm(W x + b) = (s W) x + (b - running_mean) s + beta

Between two chains that are called one after the other, batch norm's input is handed on with its statistics in place of its output
(:mod:`ganfast.nn.handed`), where a device has a kernel for that. Nothing is cached, so that no change of a parameter can be
missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import _has_any_global_hook

from ganfast.nn.conv import convolve, known, lowered, plain, watched
from ganfast.nn.groups import Grouped, groups_of, measures
from ganfast.nn.handed import Handed, Statistics, convolve_between, made
from ganfast.ops.batch_norm import batch_norm_act, batch_norm_act_tracked, normalise_act, track
from ganfast.ops.conv_norm import conv_norm_weight_gradient
from ganfast.ops.convolution import bent, keep_recipe
from ganfast.ops.tanh import tanh

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_SERVED = [
    kind
    for kind, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if torch._C._dispatch_has_kernel_for_dispatch_key("ganfast::batch_norm_act", key)
]
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    F.tanh: "tanh",
}
_METHODS = {"relu": "relu", "relu_": "relu", "tanh": "tanh", "tanh_": "tanh"}
METHODS = frozenset(_METHODS)
FUNCTIONS = frozenset({"relu", "relu_", "leaky_relu", "leaky_relu_", "tanh", "tanh_"})  # the last part of their names


class Activation(NamedTuple):
    """As the op takes it."""

    slope: float
    tanh: bool

    def over(self, y: Tensor) -> Tensor:
        """The activation of a ``y`` that nobody else reads; ReLU and LeakyReLU in its memory where autograd allows that."""
        return _tanh(y) if self.tanh else bent(y, self.slope)


def chain(act: Any, norm: Any, conv: Any, x: Any, /, *rest: Any, **keywords: Any) -> Any:
    """``act(norm(conv(x)), *rest, **keywords)``.

    Without ``act`` or ``conv`` (None) the same without that call; a string ``act`` is a method of the result of ``norm``.
    """
    return _run(Part(conv, norm, act), x, rest, keywords, handed_on=False)


class Part(NamedTuple):
    """A chain among modules that are called one after the other, or a convolution or a Tanh alone."""

    conv: Any
    norm: Any
    act: Any


def _run(part: Part, x: Any, rest: tuple[Any, ...], keywords: dict[str, Any], handed_on: bool) -> Any:
    """A chain, whose result goes to a convolution at once and to nobody else if it is ``handed_on``: then it may be Handed."""
    conv, norm, act = part
    activation = _activation(act, rest, keywords)
    if norm is None:
        y = _convolve(conv, x)[0]
        return _tanh(y) if isinstance(act, nn.Tanh) and activation is not None else _activate(act, y, rest, keywords)
    if not (isinstance(norm, _BatchNorm) and type(norm).forward is _BatchNorm.forward and bare(norm)):
        return _activate(act, norm(_convolve(conv, x)[0]), rest, keywords)
    if measures(norm):
        handing = handed_on and activation is not None and not activation.tanh
        y, statistics = _convolve(conv, x, groups_of(norm) if handing else 0)
        if activation is not None and _kernel_takes(norm, y):
            if statistics is not None:
                norm._check_input_dim(y)
                _track(norm, *statistics, _values(y))
                return Handed(y, *statistics, norm.weight, norm.bias, norm.eps, activation.slope)
            return _normalise_and_activate(norm, y, activation, handed_on)
        return _activate(act, norm(y), rest, keywords)
    x = made(x)
    if _folds(conv, norm, x):
        norm._check_input_dim(x)
        if activation is not None and not activation.tanh:
            return _convolve_folded(conv, norm, x, activation.slope)
        y = _convolve_folded(conv, norm, x, 1.0)
    else:
        y = _convolve(conv, x)[0]
        mean, var = norm.running_mean, norm.running_var
        if activation is not None and mean is not None and var is not None and _takes_as_constants(norm, y):
            norm._check_input_dim(y)
            act = norm.eps, activation.slope, activation.tanh
            return normalise_act(_laid_out(y), norm.weight, norm.bias, mean[None], var[None], *act)
        y = norm(y)
    return _activate(act, y, rest, keywords) if activation is None else activation.over(y)


# ---- convolution


def _convolve(conv: Any, x: Any, groups: int = 0) -> tuple[Any, Statistics]:
    """The convolution, and its statistics if there are ``groups`` and a kernel makes them beside it."""
    if conv is None or not _known(conv):
        return (made(x) if conv is None else conv(made(x))), None
    weight, bias = conv.weight, conv.bias
    found = convolve_between(conv, x, weight, bias, groups) if groups or isinstance(x, Handed) else None
    return found or (convolve(conv, made(x), weight, bias), None)


def _known(conv: Any) -> bool:
    """Whether a call of ``conv`` is one of PyTorch's convolutions and nothing else."""
    return isinstance(conv, _ConvNd) and bare(conv) and known(conv)


def _hands_on(following: Any) -> bool:
    """Whether what comes next begins with a convolution that sees its input before anybody else does."""
    return isinstance(following, Part) and _known(following.conv) and plain(following.conv)


def joined(modules: Iterable[Any]) -> list[Callable[[Any], Any]]:
    """``modules``, which are to be called one after the other, with every chain among them as one call."""
    found = parts(list(modules))
    return [
        partial(_run, part, rest=(), keywords={}, handed_on=_hands_on(following)) if isinstance(part, Part) else part
        for part, following in zip(found, [*found[1:], None], strict=True)
    ]


def parts(modules: list[Any]) -> list[Any]:
    """``modules`` with a :class:`Part` for each convolution, each Tanh, and each batch norm with one of them or an activation."""
    found: list[Any] = []
    at = 0
    while at < len(modules):
        conv = modules[at] if isinstance(modules[at], _ConvNd) else None
        norm_at = at if conv is None else at + 1
        if norm_at < len(modules) and isinstance(modules[norm_at], _BatchNorm):
            after = modules[norm_at + 1] if norm_at + 1 < len(modules) else None
            act = after if isinstance(after, ACTIVATIONS) else None
            if conv is not None or act is not None:
                found.append(Part(conv, modules[norm_at], act))
                at = norm_at + (1 if act is None else 2)
                continue
        if conv is not None:
            found.append(Part(conv, None, None))
        elif isinstance(modules[at], nn.Tanh):
            found.append(Part(None, None, modules[at]))
        else:
            found.append(modules[at])
        at += 1
    return found


def bare(module: nn.Module) -> bool:
    """Whether a call of ``module`` is its class's forward and nothing else; groups of statistics are no matter."""
    own = module.__dict__.get("forward")
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
        or not (own is None or (isinstance(own, Grouped) and own.inner is None))
        or module._compiled_call_impl is not None
        or type(module).__call__ is not nn.Module.__call__
    )


# ---- activations


def _activation(act: Any, rest: tuple[Any, ...], keywords: dict[str, Any]) -> Activation | None:
    """What ``act`` does, where that is known."""
    if act is None:
        return None
    if isinstance(act, nn.Module):
        return None if rest or keywords or not bare(act) else _activation_of_module(act)
    name = _METHODS.get(act) if isinstance(act, str) else _FUNCTIONS.get(act) if callable(act) and act.__hash__ else None
    if name == "tanh" and not rest and not keywords:
        return Activation(0.0, True)
    if name == "relu" and not rest and keywords.keys() <= {"inplace"}:
        return Activation(0.0, False)
    if name == "leaky_relu" and len(rest) < 2 and keywords.keys() <= ({"inplace"} if rest else {"inplace", "negative_slope"}):
        slope = rest[0] if rest else keywords.get("negative_slope", 0.01)
        return Activation(float(slope), False) if isinstance(slope, int | float) else None
    return None


def _activation_of_module(act: nn.Module) -> Activation | None:
    forward = type(act).forward
    if forward is nn.ReLU.forward:
        return Activation(0.0, False)
    if forward is nn.Tanh.forward:
        return Activation(0.0, True)
    if forward is nn.LeakyReLU.forward and isinstance(act.negative_slope, int | float):
        return Activation(float(act.negative_slope), False)
    return None


def _tanh(x: Any) -> Any:
    """By the op, or by PyTorch's where its transforms look on."""
    return torch.tanh(x) if watched() else tanh(x)


def _activate(act: Any, y: Any, rest: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    if act is None:
        return y
    return getattr(y, act)(*rest, **keywords) if isinstance(act, str) else act(y, *rest, **keywords)


# ---- training


def _kernel_takes(norm: _BatchNorm, x: Any) -> bool:
    """Whether a kernel normalises ``x`` by its own statistics, and ``norm`` itself would do nothing else or better."""
    if not _kernel_knows(norm, x):
        return False
    groups = groups_of(norm)
    return bool(x.shape[0] % groups == 0 and _values(x) > groups)


def _kernel_knows(norm: _BatchNorm, x: Any) -> bool:
    """Whether there is a kernel for ``x`` of these types, and nothing that PyTorch would refuse."""
    if (
        type(x) not in (Tensor, nn.Parameter)
        or x.device.type not in _SERVED
        or x.dtype not in _DTYPES
        or torch._C._get_tracing_state() is not None
    ):
        return False
    if not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # running statistics are written in place
    ):
        return False
    beside = torch.promote_types(x.dtype, torch.float32)
    state = [t for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var) if t is not None]
    if any(t.dtype != beside or t.device != x.device for t in state) or (norm.weight is None) != (norm.bias is None):
        return False
    return bool(x.dim() > 1 and x.shape[1] == norm.num_features and x.numel())


def _takes_as_constants(norm: _BatchNorm, x: Any) -> bool:
    """Whether a kernel normalises ``x`` by statistics that are known, through which nothing is to be differentiated."""
    if torch.compiler.is_compiling() or not _kernel_knows(norm, x):
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, norm.weight, norm.bias)))


def _laid_out(x: Tensor) -> Tensor:
    """``x`` as PyTorch's batch norm lays out its result: without gaps, channels last where the strides of x say so."""
    return x.contiguous(memory_format=suggest_memory_format(x))


def _values(x: Tensor) -> int:
    """How many values a channel has."""
    return x.shape[0] * math.prod(x.shape[2:])


def _normalise_and_activate(norm: _BatchNorm, x: Tensor, activation: Activation, handed_on: bool) -> Tensor:
    norm._check_input_dim(x)
    x, groups = _laid_out(x), groups_of(norm)
    y: Tensor
    arguments = groups, norm.eps, activation.slope, activation.tanh
    if (running := _in_place(norm)) is None:
        y, mean, var = batch_norm_act(x, norm.weight, norm.bias, *arguments)
        _track(norm, mean, var, _values(x))
    else:
        y, mean, var = batch_norm_act_tracked(x, norm.weight, norm.bias, *arguments, *running)
    if handed_on and y.requires_grad and not activation.tanh and not torch.compiler.is_compiling():
        eps, slope = norm.eps, activation.slope

        def by_weight(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, *kernel: Any) -> Tensor:
            found: Tensor = conv_norm_weight_gradient(grad, x, mean, var, weight, bias, eps, slope, *kernel)
            return found

        keep_recipe(y, by_weight, x, mean, var, norm.weight, norm.bias)
    return y


def _in_place(norm: _BatchNorm) -> tuple[Any, ...] | None:
    """Running statistics that the op itself moves, as it takes them."""
    mean, var, counted = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if not _tracks(norm) or mean is None or var is None or norm.momentum is None or torch.compiler.is_compiling():
        return None
    counts = counted is None or (counted.numel() == 1 and counted.dtype == torch.int64 and counted.device == mean.device)
    return (mean, var, counted, norm.momentum) if counts and mean.is_contiguous() and var.is_contiguous() else None


def _tracks(norm: _BatchNorm) -> bool:
    return norm.training and norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None


def _track(norm: _BatchNorm, means: Tensor, variances: Tensor, values: int) -> None:
    """Update the running statistics by those of each group, (groups, C), one after the other; ``values`` a channel in all."""
    running_mean, running_var = norm.running_mean, norm.running_var
    if not _tracks(norm) or running_mean is None or running_var is None:
        return
    if not torch.compiler.is_compiling():
        # not in autograd's sight, which PyTorch's kernel keeps them out of too: another call's backward may hold them
        running_mean, running_var = running_mean.data, running_var.data
    track(running_mean, running_var, norm.num_batches_tracked, norm.momentum, means, variances, values // len(means))


# ---- evaluation


def _folds(conv: Any, norm: _BatchNorm, x: Any) -> bool:
    """Whether batch norm goes into the weight of ``conv``: where its call is known, and the weight the smaller thing to touch."""
    if not _known(conv):
        return False
    if not isinstance(x, Tensor) or x.dim() != len(conv.kernel_size) + 2 or norm.num_features != conv.out_channels:
        return False
    if norm.running_mean is None or norm.running_var is None:
        return False
    dtype = lowered(x) or x.dtype
    state = [t for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias) if t is not None]
    if len({t.dtype for t in state}) > 1 or state[0].dtype not in (dtype, torch.promote_types(dtype, torch.float32)):
        return False  # PyTorch refuses it
    # what is recorded serves batches of any size, and a compiler may fold once and for all
    if torch._C._get_tracing_state() is not None:
        return True
    if any(t.shape != (conv.out_channels,) for t in state):  # PyTorch refuses this too
        return False
    if torch.compiler.is_compiling():
        return True
    weight_per_output = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
    shrinks = math.prod(conv.stride)
    positions = x.shape[0] * math.prod(x.shape[2:])
    return weight_per_output <= (positions * shrinks if conv.transposed else positions // shrinks)


def _convolve_folded(conv: Any, norm: _BatchNorm, x: Tensor, slope: float) -> Tensor:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    weight: Tensor = conv.weight
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if conv.bias is None else (conv.bias - mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    if conv.transposed:
        # (in, out / groups, ...): the outputs of a group of inputs are those of the group alone
        by_group = weight.unflatten(0, (conv.groups, -1)) * scale.view(conv.groups, 1, -1, *(1,) * len(conv.kernel_size))
        folded = by_group.flatten(0, 1)
    else:
        folded = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    if folded.dtype != weight.dtype:  # a float32 batch norm behind a convolution of fewer bits
        folded, shift = folded.to(weight.dtype), shift.to(weight.dtype)
    return convolve(conv, x, folded, shift, slope)
