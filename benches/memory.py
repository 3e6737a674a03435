"""The most memory that a WGAN-GP critic's step holds beyond networks and data, as PyTorch's CPU allocator counts it.

    python benches/memory.py

The whole step: scores of real and generated samples, the penalty, the gradients of all weights. Double backward holds everything
until the end, wherever it comes; ganfast's penalty is best called before the other two passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ganfast import gradient_penalty
from ganfast.benches.ops.critic_step import three_passes
from ganfast.benches.ops.gradient_penalty import CRITICS, LAYOUTS, double_backward, images, step
from ganfast.losses import wasserstein_critic
from ganfast.models import pair
from ganfast.models.shape import SampleShape


def peak(call: Callable[[], object]) -> int:
    """Bytes above those that were held before the call."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    for name, (architecture, size) in CRITICS.items():
        for batch in (32, 64):
            for suffix, layout in LAYOUTS.items():
                torch.manual_seed(0)
                critic = pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(memory_format=layout)  # type: ignore[call-overload]
                real, fake, alpha = images(batch, size, torch.device("cpu"))
                real, fake = (data.to(memory_format=layout) for data in (real, fake))
                stock, first, behind = (
                    peak(step(loss, copy.deepcopy(critic), real, fake, alpha, torch.float32)) / 1e6
                    for loss in (last(double_backward), three_passes(gradient_penalty), last(gradient_penalty))
                )
                shares = f"ganfast {first:4.0f} MB {first / stock:.2f}   called last {behind:4.0f} MB {behind / stock:.2f}"
                print(f"{f'{name} batch {batch}{suffix}':<36} double backward {stock:4.0f} MB   {shares}")


def last(penalty: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A critic's loss whose penalty comes after the scores, as loops have it that know nothing of this."""

    def loss(critic: nn.Module, real: Tensor, fake: Tensor, *, alpha: Tensor) -> Tensor:
        adversarial = wasserstein_critic(critic(real), critic(fake))
        return adversarial + penalty(critic, real, fake, alpha=alpha)

    return loss


if __name__ == "__main__":
    main()
