"""Mirza & Osindero 2014, "Conditional Generative Adversarial Nets", arXiv:1411.1784, eq. 2.

    min_G max_D  E[log D(x|y)] + E[log(1 - D(G(z|y)|y))]

Both networks see the label: the generator beside its noise, the critic beside its sample. The critic judges real samples with
their own labels and generated ones with the labels they were asked for.
"""

from __future__ import annotations

from ganfast import losses
from ganfast.errors import InvalidValue
from ganfast.latent import LabelledNoise
from ganfast.models import conditional, pair, usual_width
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Architecture, Channels, Classes, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

ABOUT = About("Mirza & Osindero 2014, arXiv:1411.1784", "MLP, DCGAN, CNN, ResNet; label beside input", "non-saturating")


def recipe(
    *,
    image_size: ImageSize = 28,
    channels: Channels = 1,
    classes: Classes = 10,
    width: Width = 0,
    latent_dim: LatentDim = 100,
    critic_steps: CriticSteps = 1,
    architecture: Architecture = "auto",
    lr: LearningRate = 2e-4,
    ema: Ema = 0.999,
) -> Recipe:
    if classes < 2:
        raise InvalidValue(f"cgan needs data with at least two classes, got {classes}")
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "dcgan" if shape.size else "mlp"
    norm = "batch" if architecture == "dcgan" else "none"
    G, _ = pair(architecture, shape, latent_dim=latent_dim + classes, width=width)
    _, D = pair(architecture, SampleShape(channels + classes, image_size), latent_dim=1, width=width, norm=norm)

    def critic(nets: Named, batch: Named) -> Terms:
        real, fake = in_one_batch(nets.D, (batch.real, batch.labels), (nets.G(batch.z, batch.y), batch.y))
        watch = {"D(real)": real.sigmoid().mean(), "D(fake)": fake.sigmoid().mean()}
        return Terms({"adversarial": losses.minimax_critic(real, fake)}, watch)

    def generator(nets: Named, batch: Named) -> Terms:
        fake = nets.D(nets.G(batch.z, batch.y), batch.y)
        return Terms({"adversarial": losses.non_saturating_generator(fake)})

    return Recipe(
        name="cgan",
        networks={"G": conditional.Generator(G, classes), "D": conditional.Critic(D, classes)},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real", "labels"), loss=critic),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=LabelledNoise(latent_dim, classes),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(0.5, 0.999)) for name in "GD"},
        ema={"G": ema},
        about=ABOUT,
        options={"architecture": architecture, "width": width or usual_width(architecture)},
    )
