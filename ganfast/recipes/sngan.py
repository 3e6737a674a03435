"""Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", arXiv:1802.05957, algorithm 1.

    W_SN = W / sigma(W),   sigma by one step of power iteration per critic update

Every layer of the critic has spectral norm 1, so the critic is Lipschitz by construction; hinge loss (eq. 16 and 17), five
critic steps.
"""

from __future__ import annotations

from typing import Annotated

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import pair
from ganfast.models.shape import SampleShape
from ganfast.nn import spectral_norm_, update_spectral_norm
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Architecture, Channels, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

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
    beta1: Annotated[float, "Adam's first momentum"] = 0.0,
    beta2: Annotated[float, "Adam's second momentum"] = 0.9,
    ema: Ema = 0.999,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "resnet" if shape.size else "mlp"
    G, D = pair(architecture, shape, latent_dim=latent_dim, width=width)
    spectral_norm_(D)

    def critic(nets: Named, batch: Named) -> Terms:
        update_spectral_norm(nets.D)
        real, fake = nets.D(batch.real), nets.D(nets.G(batch.z))
        return Terms({"adversarial": losses.hinge_critic(real, fake)}, {"D(real)": real.mean(), "D(fake)": fake.mean()})

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": losses.hinge_generator(nets.D(nets.G(batch.z)))})

    return Recipe(
        name="sngan",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(beta1, beta2)) for name in "GD"},
        ema={"G": ema},
        score=lambda nets, x: nets.D(x),
        about=ABOUT,
    )
