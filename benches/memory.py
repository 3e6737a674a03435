"""The most memory that a step holds beyond networks and data, as PyTorch's CPU allocator counts it.

    python benches/memory.py

A WGAN-GP critic's whole step: scores of real and generated samples, the penalty, the gradients of all weights. Double backward
holds everything until the end, wherever it comes; ganfast's penalty is best called before the other two passes. And forward and
backward of DCGAN-64's generator.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

os.environ["GANFAST_POOL_MB"] = "0"  # or the allocator would not see the kernels' memory

from ganfast import gradient_penalty
from ganfast.benches.ops import generator
from ganfast.benches.ops.critic_step import three_passes
from ganfast.benches.ops.gradient_penalty import CRITICS, LAYOUTS, double_backward, images, step
from ganfast.benches.plain import plain
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
    critics()
    generators()


def generators() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        networks = generator.generators(torch.device("cpu"))
        z = torch.randn(generator.BATCH, generator.LATENT)
        peaks = {provider: peak(generator.training(network, z, dtype)) / 1e6 for provider, network in networks.items()}
        ours = peaks.pop("ganfast")
        shares = ", ".join(f"{ours / most:.2f} of {provider}'s {most:.0f}" for provider, most in peaks.items())
        print(f"{f'dcgan-64 generator {dtype}':<36} ganfast {ours:.0f} MB: {shares}")


def critics() -> None:
    for name, (architecture, size) in CRITICS.items():
        for batch in (32, 64):
            for suffix, layout in LAYOUTS.items():
                torch.manual_seed(0)
                critic = pair(architecture, SampleShape(3, size), latent_dim=128)[1].to(memory_format=layout)  # type: ignore[call-overload]
                real, fake, alpha = images(batch, size, torch.device("cpu"))
                real, fake = (data.to(memory_format=layout) for data in (real, fake))
                stock, first, behind = (
                    peak(step(loss, network, real, fake, alpha, torch.float32)) / 1e6
                    for network, loss in (
                        (plain(critic), last(double_backward)),
                        (critic, three_passes(gradient_penalty)),
                        (critic, last(gradient_penalty)),
                    )
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
