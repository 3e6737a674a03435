r"""One step of Adam for all parameters of a network, and of the moving averages that follow them (Kingma & Ba 2015, algorithm 1).

For a parameter p with gradient g, moments m and v, and t, the number of this step, from 1 on:

    m <- m + (1 - beta1) (g - m)
    v <- beta2 v + (1 - beta2) g^2
    p <- p - lr m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    e <- e + pull (p - e)                                                   where the parameter has an average e

as ``torch.optim.Adam`` computes it, without weight decay and without amsgrad. ``found_inf`` (), where given and not zero, leaves
p, m and v as they are; averages move all the same, as the parameters they follow stand still.

p, m, v, e are changed in place: lists of tensors, one dtype for all, float32 or float64, each parameter's with its strides and
without gaps. Gradients may lie anyhow. ``steps`` are t, float32 scalars, and ``lr`` and ``pull`` float64 scalars, all on the
device, so that a captured graph can be replayed with other ones. 1 - beta^t is computed in float64. Elements are independent of
one another, so results do not depend on the number of threads.

Bytes that must move, |p| those of the parameters: 7 |p|, and 2 |p| for the averages (3 |p| in a pass of their own).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ganfast.ops.library import register

Tensors = Sequence[Tensor]


def adam_reference_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    averages: Tensors,
    lr: Tensor,
    pull: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    found_inf: Tensor | None,
) -> None:
    """In plain PyTorch. ``averages`` is as long as ``params``, or empty."""
    _check(params, grads, exp_avgs, exp_avg_sqs, steps, averages)
    for p, g, m, v, step in zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True):
        t = step.double()
        new_m = torch.lerp(m, g, 1 - beta1)
        new_v = (beta2 * v).addcmul(g, g, value=1 - beta2)
        denominator = new_v.sqrt() / (1 - beta2**t).sqrt() + eps
        new_p = p - lr / (1 - beta1**t) * (new_m / denominator)
        for old, new in ((p, new_p), (m, new_m), (v, new_v)):
            old.copy_(new if found_inf is None else torch.where(found_inf.view(()) == 0, new, old))
    for p, e in zip(params, averages, strict=False):
        e.lerp_(p, pull.to(e.dtype))


def _check(*lists: Tensors) -> None:
    params, *others, averages = lists
    if any(len(given) != len(params) for given in others) or len(averages) not in (0, len(params)):
        raise ValueError(
            f"expected lists of one length, and averages or none, got {', '.join(str(len(given)) for given in lists)}"
        )
    grads, exp_avgs, exp_avg_sqs, _ = others
    for given in (grads, exp_avgs, exp_avg_sqs, averages):
        for p, t in zip(params, given, strict=False):
            if t.shape != p.shape or t.dtype != p.dtype:
                raise ValueError(
                    f"expected all of a parameter's tensors {tuple(p.shape)}, {p.dtype}, got {tuple(t.shape)}, {t.dtype}"
                )


def _fake(*arguments: object) -> None:
    return None


_adam_ = register(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor[] steps,"
    " Tensor(d!)[] averages, Tensor lr, Tensor pull, float beta1, float beta2, float eps, Tensor? found_inf) -> ()",
    reference=adam_reference_,
    fake=_fake,
)


@torch.no_grad()
def adam_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    averages: Tensors,
    lr: Tensor,
    pull: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    found_inf: Tensor | None = None,
) -> None:
    """One step, in place. Raises ValueError for lists, shapes or dtypes that do not fit."""
    _adam_(params, grads, exp_avgs, exp_avg_sqs, steps, averages, lr, pull, beta1, beta2, eps, found_inf)
    increment_version([*params, *exp_avgs, *exp_avg_sqs, *averages])  # what autograd saved of them is no longer good


def served(device: torch.device) -> bool:
    """Whether there is a kernel for the device, and not the reference alone, which takes a dozen passes."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("ganfast::adam_", "CUDA" if device.type == "cuda" else "CPU")
