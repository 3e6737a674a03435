"""A WGAN-GP critic's step, losses and gradients: three passes with double backward or with ganfast's penalty, or one pass.

``one batch`` is ganfast.penalised_loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ganfast import gradient_penalty, penalised_loss
from ganfast.benches.harness import Case
from ganfast.benches.ops.gradient_penalty import CRITICS, case, double_backward, images
from ganfast.losses import wasserstein_critic
from ganfast.models import pair
from ganfast.models.shape import SampleShape


def cases(device: torch.device) -> Iterator[Case]:
    for name, (architecture, size) in CRITICS.items():
        for batch in (32, 64):
            torch.manual_seed(0)
            critic = pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(device)
            losses = {"torch": three_passes(double_backward), "ganfast": three_passes(gradient_penalty)}
            losses["ganfast, one batch"] = one
            yield case("critic_step", f"{name} batch {batch}", losses, critic, images(batch, size, device))


def three_passes(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loss(critic: nn.Module, real: Tensor, fake: Tensor, *, alpha: Tensor) -> Tensor:
        charged = penalty(critic, real, fake, alpha=alpha)
        return charged + wasserstein_critic(critic(real), critic(fake))

    return loss


def one(critic: nn.Module, real: Tensor, fake: Tensor, *, alpha: Tensor) -> Tensor:
    return penalised_loss(critic, real, fake, wasserstein_critic, alpha=alpha).total
