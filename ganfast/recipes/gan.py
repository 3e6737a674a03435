"""Goodfellow et al. 2014, "Generative Adversarial Nets", arXiv:1406.2661, algorithm 1.

    min_G max_D  E_x[log D(x)] + E_z[log(1 - D(G(z)))]

Multilayer perceptrons; k critic steps per generator step. The generator minimises the minimax loss or, as section 3 advises early
in training, maximises log D(G(z)). The paper's own discriminator, maxout with dropout, is ``discriminator="maxout"``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import mlp, pair, usual_width
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Channels, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

ABOUT = About("Goodfellow et al. 2014, arXiv:1406.2661", "MLP; maxout + dropout", "minimax or non-saturating")


def recipe(
    *,
    image_size: ImageSize = 28,
    channels: Channels = 1,
    width: Width = 0,
    latent_dim: LatentDim = 100,
    critic_steps: CriticSteps = 1,
    generator_loss: Annotated[Literal["non-saturating", "minimax"], "what the generator minimises"] = "non-saturating",
    discriminator: Annotated[Literal["leaky-relu", "maxout"], "maxout with dropout is the paper's"] = "leaky-relu",
    lr: LearningRate = 2e-4,
    ema: Ema = 0.0,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    width = width or (240 if discriminator == "maxout" else usual_width("mlp"))  # the paper's maxout layers have 240 units
    G, plain = pair("mlp", shape, latent_dim=latent_dim, width=width)
    D = mlp.MaxoutCritic(shape, width) if discriminator == "maxout" else plain
    generator_minimises = {"non-saturating": losses.non_saturating_generator, "minimax": losses.minimax_generator}[generator_loss]

    def critic(nets: Named, batch: Named) -> Terms:
        real, fake = in_one_batch(nets.D, (batch.real,), (nets.G(batch.z),))
        watch = {"D(real)": real.sigmoid().mean(), "D(fake)": fake.sigmoid().mean()}
        return Terms({"adversarial": losses.minimax_critic(real, fake)}, watch)

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": generator_minimises(nets.D(nets.G(batch.z)))})

    return Recipe(
        name="gan",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(0.5, 0.999)) for name in "GD"},
        ema={"G": ema},
        score=lambda nets, x: nets.D(x).sigmoid(),
        about=ABOUT,
        options={"width": width},
    )
