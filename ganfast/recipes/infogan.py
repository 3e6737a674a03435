"""Chen et al. 2016, "InfoGAN: Interpretable Representation Learning by Information Maximizing GANs", arXiv:1606.03657, eq. 6.

    min_{G,Q} max_D  V(D, G) - lambda L_I(G, Q),   L_I = E[log Q(c | G(z, c))] + H(c)

Q is a head on the critic's trunk that recovers the code from the sample: one categorical code and continuous ones. As in the
paper's appendix C, Q's loss trains the trunk with the critic, and the generator too.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ganfast import losses
from ganfast.latent import Codes
from ganfast.models import pair, usual_width
from ganfast.models.shape import SampleShape
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Architecture, Between, Channels, CriticSteps, Ema, ImageSize, LatentDim, Width

ABOUT = About(
    "Chen et al. 2016, arXiv:1606.03657",
    "MLP, DCGAN, CNN, ResNet; Q on the trunk",
    "non-saturating + mutual information",
)


class CodeHead(nn.Sequential):
    """Q.

    Features of the critic's trunk (feature_dim values a sample) -> logits of the category, means and log-variances of the
    continuous codes.
    """

    def __init__(self, feature_dim: int, codes: Codes) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(feature_dim, 128),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(0.1),
            nn.Linear(128, codes.categories + 2 * codes.continuous),
        )


def recipe(
    *,
    image_size: ImageSize = 28,
    channels: Channels = 1,
    width: Width = 0,
    latent_dim: LatentDim = 62,
    categories: Annotated[int, "values of the categorical code", Between(2)] = 10,
    continuous: Annotated[int, "number of continuous codes, uniform on [-1, 1]", Between(0)] = 2,
    information: Annotated[float, "lambda, the weight of the categorical code's mutual information", Between(0)] = 1.0,
    continuous_information: Annotated[float, "its weight for the continuous codes", Between(0)] = 0.1,
    critic_steps: CriticSteps = 1,
    architecture: Architecture = "auto",
    lr: Annotated[float, "step size of the critic and Q", Between(0)] = 2e-4,
    generator_lr: Annotated[float, "step size of the generator", Between(0)] = 1e-3,
    ema: Ema = 0.999,
) -> Recipe:
    shape = SampleShape(channels, image_size)
    if architecture == "auto":
        architecture = "dcgan" if shape.size else "mlp"
    codes = Codes(latent_dim, categories, continuous)
    norm = "batch" if architecture == "dcgan" else "none"
    G, D = pair(architecture, shape, latent_dim=codes.dim, width=width, norm=norm)

    def information_terms(nets: Named, features: Tensor, z: Tensor) -> dict[str, Tensor]:
        category, code = codes.split(z)
        logits, mean, log_variance = nets.Q(features).float().split([categories, continuous, continuous], 1)
        terms = {"category": information * F.cross_entropy(logits, category)}
        if continuous:
            terms["continuous"] = continuous_information * losses.gaussian_code(mean, log_variance.clamp(-6, 6), code)
        return terms

    def critic(nets: Named, batch: Named) -> Terms:
        features = nets.D.features(nets.G(batch.z))
        real, fake = nets.D(batch.real), nets.D.judge(features)
        watch = {"D(real)": real.sigmoid().mean(), "D(fake)": fake.sigmoid().mean()}
        return Terms({"adversarial": losses.minimax_critic(real, fake), **information_terms(nets, features, batch.z)}, watch)

    def generator(nets: Named, batch: Named) -> Terms:
        features = nets.D.features(nets.G(batch.z))
        fake = nets.D.judge(features)
        return Terms({"adversarial": losses.non_saturating_generator(fake), **information_terms(nets, features, batch.z)})

    return Recipe(
        name="infogan",
        networks={"G": G, "D": D, "Q": CodeHead(D.feature_dim, codes)},
        phases=(
            Phase("critic", updates=("D", "Q"), repeat=critic_steps, reads=("real",), loss=critic),
            Phase("generator", updates=("G",), loss=generator),
        ),
        latent=codes,
        optimizers={
            "G": Optimizer("Adam", lr=generator_lr, betas=(0.5, 0.999)),
            "D": Optimizer("Adam", lr=lr, betas=(0.5, 0.999)),
            "Q": Optimizer("Adam", lr=lr, betas=(0.5, 0.999)),
        },
        ema={"G": ema},
        score=lambda nets, x: nets.D(x).sigmoid(),
        about=ABOUT,
        options={"architecture": architecture, "width": width or usual_width(architecture)},
    )
