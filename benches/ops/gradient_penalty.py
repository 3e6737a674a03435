"""The gradient penalty of a critic, value and gradients, against autograd's double backward.

Stock is double backward in the contiguous layout and with channels last, each in float32 and under bfloat16 autocast;
torch.compile cannot do it at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ganfast.benches.harness import Case
from ganfast.benches.plain import plain
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.penalties import gradient_penalty

CRITICS = {"resnet-32": ("resnet", 32), "dcgan-64": ("dcgan", 64)}
LAYOUTS = {"": torch.contiguous_format, " channels-last": torch.channels_last}


def cases(device: torch.device) -> Iterator[Case]:
    torch.manual_seed(0)
    points = torch.randn(128, 2, device=device), torch.randn(128, 2, device=device), torch.rand(128, device=device)
    losses = {"torch": double_backward, "ganfast": gradient_penalty}
    compiled = {"ganfast compiled": torch.compile(gradient_penalty, dynamic=False)}
    small = pair("mlp", SampleShape(2, 0), latent_dim=2, width=128)[1].to(device)
    yield case("gradient_penalty", "mlp on points batch 128 float32", losses | compiled, small, points)
    for dtype in (torch.float32, torch.bfloat16):
        for name, (architecture, size) in CRITICS.items():
            for batch in (32, 64):
                torch.manual_seed(0)
                critic = pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(device)
                given = images(batch, size, device)
                what = f"{name} batch {batch} {str(dtype).removeprefix('torch.')}"
                yield case(
                    "gradient_penalty", what, {"torch": double_backward, "ganfast": gradient_penalty}, critic, given, dtype
                )


def case(
    bench: str,
    name: str,
    losses: Mapping[str, Callable[..., Tensor]],
    critic: nn.Module,
    given: tuple[Tensor, Tensor, Tensor],
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Value and gradients of ``loss(critic, real, fake, alpha=...)`` by each provider in both layouts, torch's the stock ones."""
    providers = {}
    for suffix, layout in LAYOUTS.items():
        laid_out = copy.deepcopy(critic).to(memory_format=layout)  # type: ignore[call-overload]
        real, fake = (data.to(memory_format=layout) if data.dim() == 4 else data for data in given[:2])
        for provider, loss in losses.items():
            asked = plain(laid_out) if provider.startswith("torch") else laid_out
            providers[provider + suffix] = step(loss, asked, real, fake, given[2], dtype)
    stock = tuple(provider for provider in providers if provider.startswith("torch"))
    return Case(bench, name, providers, stock=stock, dtype=dtype, device=given[0].device)


def images(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Real, fake, alpha."""
    real, fake = (torch.rand(batch, 3, size, size, device=device) for _ in range(2))
    return real, fake, torch.rand(batch, device=device)


def double_backward(critic: nn.Module, real: Tensor, fake: Tensor, *, alpha: Tensor) -> Tensor:
    point = torch.lerp(fake, real, alpha.view(-1, *[1] * (real.dim() - 1))).requires_grad_()
    (grad,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return 10 * (grad.float().flatten(1).norm(dim=1) - 1).square().mean()


def step(
    loss: Callable[..., Tensor], critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor, dtype: torch.dtype
) -> Callable[[], dict[str, Tensor | None]]:
    def call() -> dict[str, Tensor | None]:
        critic.zero_grad()
        with torch.autocast(real.device.type, dtype, enabled=dtype != torch.float32):
            value = loss(critic, real, fake, alpha=alpha)
        value.backward()
        return {name: p.grad for name, p in critic.named_parameters()}

    return call
