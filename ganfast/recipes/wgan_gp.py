"""Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", arXiv:1704.00028, algorithm 1.

    L = E[D(G(z))] - E[D(x)] + lambda E[(|grad D(x^)| - 1)^2],   x^ = alpha x + (1 - alpha) G(z)

Five critic steps with the penalty at random interpolates; no batch norm in the critic, where it would tie samples together;
layer norm is allowed. ``penalty_every`` makes the penalty lazy, in steps of its own (Karras et al. 2020, appendix B).
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from ganfast import losses
from ganfast.latent import Noise
from ganfast.models import pair, usual_width
from ganfast.models.shape import SampleShape
from ganfast.nn import in_one_batch
from ganfast.penalties import gradient_penalty
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import (
    Architecture,
    Between,
    Channels,
    CriticSteps,
    Ema,
    ImageSize,
    LatentDim,
    LearningRate,
    Norm,
    Width,
)

ABOUT = About("Gulrajani et al. 2017, arXiv:1704.00028", "MLP, DCGAN, CNN, ResNet; LayerNorm", "Wasserstein", "gradient penalty")


def recipe(
    *,
    image_size: ImageSize = 32,
    channels: Channels = 3,
    width: Width = 0,
    latent_dim: LatentDim = 128,
    critic_steps: CriticSteps = 5,
    penalty: Annotated[float, "lambda, the weight of the gradient penalty", Between(0)] = 10.0,
    kind: Annotated[Literal["two-sided", "one-sided"], "whether slopes below one are penalised too"] = "two-sided",
    penalty_every: Annotated[
        int, "iterations between penalties, each of which counts so often; the paper's is 1", Between(1)
    ] = 1,
    architecture: Architecture = "auto",
    norm: Norm = "none",
    lr: LearningRate = 1e-4,
    beta1: Annotated[float, "Adam's first momentum; 0.5 is common on images", Between(0, 0.9999)] = 0.0,
    beta2: Annotated[float, "Adam's second momentum", Between(0, 0.9999)] = 0.9,
    ema: Ema = 0.999,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "resnet" if shape.size else "mlp"
    G, D = pair(architecture, shape, latent_dim=latent_dim, width=width, norm=norm)

    def penalised(nets: Named, real: Tensor, generated: Tensor) -> Terms:
        weight = penalty * penalty_every
        return Terms({"penalty": gradient_penalty(nets.D, real, generated, weight=weight, kind=kind)})

    def critic(nets: Named, batch: Named) -> Terms:
        generated = nets.G(batch.z)
        # first: it is done with its activations when it returns, and the two other passes keep theirs
        first = penalised(nets, batch.real, generated).minimise if penalty_every == 1 else {}
        real, fake = in_one_batch(nets.D, (batch.real,), (generated,))
        terms = {"adversarial": losses.wasserstein_critic(real, fake), **first}
        return Terms(terms, {"D(real)": real.mean(), "D(fake)": fake.mean()})

    def lazily(nets: Named, batch: Named) -> Terms:
        return penalised(nets, batch.real, nets.G(batch.z))

    def generator(nets: Named, batch: Named) -> Terms:
        return Terms({"adversarial": losses.wasserstein_generator(nets.D(nets.G(batch.z)))})

    lazy = Phase("penalty", updates=("D",), repeat=critic_steps, every=penalty_every, reads=("real",), loss=lazily)
    return Recipe(
        name="wgan-gp",
        networks={"G": G, "D": D},
        phases=(
            Phase("critic", updates=("D",), repeat=critic_steps, reads=("real",), loss=critic),
            *([lazy] if penalty_every > 1 else []),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=Noise(latent_dim),
        optimizers={name: Optimizer("Adam", lr=lr, betas=(beta1, beta2)) for name in "GD"},
        ema={"G": ema},
        score=lambda nets, x: nets.D(x),
        about=ABOUT,
        options={"architecture": architecture, "width": width or usual_width(architecture)},
    )
