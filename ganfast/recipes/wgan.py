"""Arjovsky et al. 2017, "Wasserstein GAN", arXiv:1701.07875, algorithm 1.

    max_f  E_x[f(x)] - E_z[f(G(z))]   over f with every weight in [-c, c]

Five critic steps, RMSProp with 5e-5, no sigmoid, no logarithm; after each critic step its weights are clipped.
"""

from __future__ import annotations

from typing import Annotated

import torch

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import pair, usual_width
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Architecture, Between, Channels, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

ABOUT = About("Arjovsky et al. 2017, arXiv:1701.07875", "MLP, DCGAN, CNN, ResNet", "Wasserstein", "weight clipping")


def recipe(
    *,
    image_size: ImageSize = 64,
    channels: Channels = 3,
    width: Width = 0,
    latent_dim: LatentDim = 100,
    critic_steps: CriticSteps = 5,
    clip: Annotated[float, "critic weights are kept in [-clip, clip]", Between(0)] = 0.01,
    architecture: Architecture = "auto",
    lr: LearningRate = 5e-5,
    ema: Ema = 0.0,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "dcgan" if shape.size else "mlp"
    norm = "batch" if architecture == "dcgan" else "none"
    G, D = pair(architecture, shape, latent_dim=latent_dim, width=width, norm=norm)

    def critic(nets: Named, batch: Named) -> Terms:
        real, fake = in_one_batch(nets.D, (batch.real,), (nets.G(batch.z),))
        watch = {"D(real)": real.mean(), "D(fake)": fake.mean()}
        return Terms({"adversarial": losses.wasserstein_critic(real, fake)}, watch)

    @torch.no_grad()
    def clip_weights(nets: Named) -> None:
        for parameter in nets.D.parameters():
            parameter.clamp_(-clip, clip)

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": losses.wasserstein_generator(nets.D(nets.G(batch.z)))})

    return Recipe(
        name="wgan",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic, after=clip_weights),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim),
        optimizers={name: Optimizer("RMSprop", lr=lr) for name in "GD"},
        ema={"G": ema},
        score=lambda nets, x: nets.D(x),
        about=ABOUT,
        options={"architecture": architecture, "width": width or usual_width(architecture)},
    )
