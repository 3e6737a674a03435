"""A WGAN-GP loop in plain PyTorch, with autograd's double backward and with ganfast's penalty in its place.

    python examples/own_loop.py [--steps 20] [--batch 64]

Both train the same networks from the same seed on the same images, in turns; what is printed is the time of a critic step and
how much faster the second one is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import ganfast
from ganfast.data import open_dataset


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    critic = nn.Sequential(
        *(nn.Conv2d(1, 64, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(64, 128, 4, 2, 1), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Linear(128 * 7 * 7, 1)),
    )
    generator = nn.Sequential(
        *(nn.Linear(64, 128 * 7 * 7), nn.ReLU(), nn.Unflatten(1, (128, 7, 7))),
        *(nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 1, 4, 2, 1), nn.Tanh()),
    )
    return critic, generator


def double_backward(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    point = torch.lerp(fake, real, alpha.view(-1, 1, 1, 1)).requires_grad_()
    (grad,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
    return 10 * (grad.flatten(1).norm(dim=1) - 1).square().mean()


def four_passes(critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> Tensor:
    return ganfast.gradient_penalty(critic, real, fake, alpha=alpha)


def training(penalty: Callable[..., Tensor], images: Tensor, batch: int) -> Callable[[], tuple[float, float]]:
    """Iterations of five critic steps and one of the generator; each call returns a critic step's seconds and its penalty."""
    critic, generator = networks()
    critic_adam, generator_adam = (torch.optim.Adam(net.parameters(), 1e-4, (0.0, 0.9)) for net in (critic, generator))
    drawn = torch.Generator().manual_seed(1)

    def iteration() -> tuple[float, float]:
        began = time.perf_counter()
        for _ in range(5):
            real = images[torch.randint(len(images), (batch,), generator=drawn)]
            with torch.no_grad():
                fake = generator(torch.randn(batch, 64, generator=drawn))
            critic_adam.zero_grad()
            # the penalty first: it holds no activations when it returns
            loss = penalty(critic, real, fake, torch.rand(batch, generator=drawn))
            (loss + critic(fake).mean() - critic(real).mean()).backward()
            critic_adam.step()
        seconds = (time.perf_counter() - began) / 5
        generator_adam.zero_grad()
        (-critic(generator(torch.randn(batch, 64, generator=drawn))).mean()).backward()
        generator_adam.step()
        return seconds, loss.item()

    return iteration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    pixels = torch.tensor(open_dataset("fashion-mnist-10k").groups["real"]["real"])  # uint8 (N, 28, 28, 1)
    images = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    loops = {penalty: training(penalty, images, options.batch) for penalty in (double_backward, four_passes)}
    seconds: dict[Callable[..., Tensor], list[float]] = {penalty: [] for penalty in loops}
    last = {}
    for step in range(1, options.steps + 1):
        for penalty, iteration in loops.items():
            took, last[penalty] = iteration()
            seconds[penalty].append(took)
        print(f"\r{step} of {options.steps}", end="", flush=True)
    plain, ours = (1e3 * statistics.median(seconds[penalty]) for penalty in loops)
    print(f"\ndouble backward  {plain:7.1f} ms a critic step, last penalty {last[double_backward]:.5f}")
    print(f"ganfast          {ours:7.1f} ms a critic step, last penalty {last[four_passes]:.5f}: {plain / ours:.2f}x faster")


if __name__ == "__main__":
    main()
