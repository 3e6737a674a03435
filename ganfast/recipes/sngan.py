"""Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", arXiv:1802.05957, algorithm 1.

    W_SN = W / sigma(W),   sigma by one step of power iteration per critic update

Every layer of the critic has spectral norm 1, so the critic is Lipschitz by construction; hinge loss (eq. 16 and 17), five
critic steps.
"""

from __future__ import annotations

from typing import Annotated

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import Pair, pair, resnet, usual_width
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch, spectral_norm_, update_spectral_norm
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Architecture, Between, Channels, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

ABOUT = About("Miyato et al. 2018, arXiv:1802.05957", "CNN, DCGAN, ResNet, MLP", "hinge", "spectral norm")


def recipe(
    *,
    image_size: ImageSize = 32,
    channels: Channels = 3,
    width: Width = 0,
    latent_dim: LatentDim = 128,
    critic_steps: CriticSteps = 5,
    architecture: Architecture = "auto",
    lr: LearningRate = 2e-4,
    beta1: Annotated[float, "Adam's first momentum", Between(0, 0.9999)] = 0.0,
    beta2: Annotated[float, "Adam's second momentum", Between(0, 0.9999)] = 0.9,
    ema: Ema = 0.999,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "resnet" if shape.size else "mlp"
    if architecture == "resnet":  # table 4: the generator twice as wide as the critic, a sum over positions at its end
        width = width or 128
        networks: Pair = resnet.Generator(shape, latent_dim, 2 * width), resnet.Critic(shape, width, pool="sum")
        for network in networks:
            resnet.initialise(network)
    else:
        networks = pair(architecture, shape, latent_dim=latent_dim, width=width)
    G, D = networks
    spectral_norm_(D)

    def critic(nets: Named, batch: Named) -> Terms:
        real, fake = in_one_batch(nets.D, (batch.real,), (nets.G(batch.z),))
        return Terms({"adversarial": losses.hinge_critic(real, fake)}, {"D(real)": real.mean(), "D(fake)": fake.mean()})

    def power_iteration(nets: Named) -> None:
        update_spectral_norm(nets.D)

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": losses.hinge_generator(nets.D(nets.G(batch.z)))})

    return Recipe(
        name="sngan",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic, before=power_iteration),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(beta1, beta2)) for name in "GD"},
        ema={"G": ema},
        score=lambda nets, x: nets.D(x),
        about=ABOUT,
        options={"architecture": architecture, "width": width or usual_width(architecture)},
    )
