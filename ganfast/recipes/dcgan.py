"""Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional GANs", arXiv:1511.06434, section 3.

Strided and transposed convolutions instead of pooling, batch norm everywhere but on the generator's output and the critic's
input, no hidden dense layers, ReLU and tanh in the generator, LeakyReLU 0.2 in the critic, weights N(0, 0.02), Adam with 2e-4
and beta1 0.5. ``outputs=2`` is the critic with a two-class softmax instead of one sigmoid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import dcgan
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Between, Channels, CriticSteps, Ema, ImageSize, LatentDim, LearningRate, Width

ABOUT = About("Radford et al. 2016, arXiv:1511.06434", "DCGAN, batch norm", "non-saturating; 1 or 2 outputs")


def recipe(
    *,
    image_size: ImageSize = 64,
    channels: Channels = 3,
    width: Width = 64,
    latent_dim: LatentDim = 100,
    critic_steps: CriticSteps = 1,
    outputs: Annotated[Literal[1, 2], "1: sigmoid, 2: softmax over real and fake"] = 1,
    lr: LearningRate = 2e-4,
    beta1: Annotated[float, "Adam's first momentum", Between(0, 0.9999)] = 0.5,
    ema: Ema = 0.999,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    width = width or 64
    G, D = dcgan.Generator(shape, latent_dim, width), dcgan.Critic(shape, width, outputs=outputs)
    dcgan.initialise(G)
    dcgan.initialise(D)
    score: Callable[[Tensor], Tensor] = {1: lambda scores: scores, 2: losses.log_odds}[outputs]

    def critic(nets: Named, batch: Named) -> Terms:
        real, fake = map(score, in_one_batch(nets.D, (batch.real,), (nets.G(batch.z),)))
        watch = {"D(real)": real.sigmoid().mean(), "D(fake)": fake.sigmoid().mean()}
        return Terms({"adversarial": losses.minimax_critic(real, fake)}, watch)

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": losses.non_saturating_generator(score(nets.D(nets.G(batch.z))))})

    return Recipe(
        name="dcgan",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim, uniform=True),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(beta1, 0.999)) for name in "GD"},
        ema={"G": ema},
        about=ABOUT,
    )
