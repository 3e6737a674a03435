"""The least time of an iteration: its products at the speed of a large matrix product, and what Adam must move at that of a copy.

F = multiplications and additions of a forward pass. A critic step is the generator forward and two passes of the critic with
their gradients, Fg + 6 Fd, and with a gradient penalty 4 Fd more; a generator step has the gradients by the generator's weights
and by the critic's input alone, 3 Fg + 2 Fd. Everything elementwise is left out: it can ride on the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ganfast.benches import harness
from ganfast.benches.plain import ConvMeanPool, UpsampleConv
from ganfast.benches.training.networks import pair
from ganfast.recipe import Recipe

ADAM_BYTES = 28  # a parameter: weight, gradient and two moments are read, all but the gradient written


def seconds(recipe: Recipe, batch: int, critic_steps: int, dtype: torch.dtype, device: torch.device) -> float:
    """The floor of one iteration in products of ``dtype`` on ``device``, whose ceilings are measured."""
    generator, critic = flops(recipe)
    step = generator + (10 if recipe.name == "wgan-gp" else 6) * critic
    products = batch * (critic_steps * step + 3 * generator + 2 * critic)
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in recipe.networks.items()}
    moved = ADAM_BYTES * (critic_steps * sizes["D"] + sizes["G"])
    return products / harness.matmul_ceiling(device, dtype) + moved / harness.copy_ceiling(device)


def flops(recipe: Recipe) -> tuple[float, float]:
    """F of an image, generator's and critic's, the cheapest exact way round.

    That is 4 x 4 taps at half the pixels for a 3 x 3 convolution beside a halving or a doubling (:mod:`ganfast.nn.resample`).
    """
    options: Any = recipe.options
    samples = torch.zeros(2, options["latent_dim"]), torch.zeros(2, options["channels"], *[options["image_size"]] * 2)
    counts = []
    for network, sample in zip(pair(recipe), samples, strict=True):
        counts.append(0.0)

        def counted(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = inputs[0][0, 0].numel(), output[0, 0].numel()  # positions
            match layer:
                case ConvMeanPool() | UpsampleConv():
                    times = 16 / 9 * min(x, y)
                case nn.Linear():
                    times = 1
                case nn.ConvTranspose2d():
                    times = x
                case _:
                    times = y
            counts[-1] += 2 * layer.weight.numel() * times

        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.register_forward_hook(counted)
        with torch.no_grad():
            network(sample)
    return counts[0], counts[1]
