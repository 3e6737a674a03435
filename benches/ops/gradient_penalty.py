"""The gradient penalty of a critic, value and gradients, against autograd's double backward.

Stock is double backward in the contiguous layout and with channels last, each in float32 and under bfloat16 autocast;
torch.compile cannot do it at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ganfast.benches.harness import Case
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.penalties import gradient_penalty

CRITICS = {"resnet-32": ("resnet", 32), "dcgan-64": ("dcgan", 64)}


def cases(device: torch.device) -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for name, (architecture, size) in CRITICS.items():
            for batch in (32, 64):
                torch.manual_seed(0)
                critic = pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(device)
                real, fake = (torch.rand(batch, 3, size, size, device=device) for _ in range(2))
                alpha = torch.rand(batch, device=device)
                providers = {}
                for layout, suffix in ((torch.contiguous_format, ""), (torch.channels_last, " channels-last")):
                    laid_out = copy.deepcopy(critic).to(memory_format=layout)  # type: ignore[call-overload]
                    data = [images.to(memory_format=layout) for images in (real, fake)]
                    for provider, penalty in (("torch", double_backward), ("ganfast", gradient_penalty)):
                        providers[provider + suffix] = step(penalty, laid_out, *data, alpha, dtype)
                yield Case(
                    "gradient_penalty",
                    f"{name} batch {batch} {str(dtype).removeprefix('torch.')}",
                    providers,
                    stock=("torch", "torch channels-last"),
                    dtype=dtype,
                    device=device,
                )


def double_backward(critic: nn.Module, real: Tensor, fake: Tensor, *, alpha: Tensor) -> Tensor:
    point = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1)).requires_grad_()
    (grad,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return 10 * (grad.float().flatten(1).norm(dim=1) - 1).square().mean()


def step(
    penalty: Callable[..., Tensor], critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor, dtype: torch.dtype
) -> Callable[[], dict[str, Tensor | None]]:
    def call() -> dict[str, Tensor | None]:
        critic.zero_grad()
        with torch.autocast(real.device.type, dtype, enabled=dtype != torch.float32):
            value = penalty(critic, real, fake, alpha=alpha)
        value.backward()
        return {name: p.grad for name, p in critic.named_parameters()}

    return call
