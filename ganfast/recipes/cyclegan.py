"""Zhu et al. 2017, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks", arXiv:1703.10593, eq. 3.

    L = L_GAN(AB, D_B) + L_GAN(BA, D_A) + lambda (E|BA(AB(a)) - a| + E|AB(BA(b)) - b|)

Two pairs, least-squares adversarial losses, an identity term of half the cycle weight, critics fed from a history of 50 images.
The critics judge fresh translations of a batch of their own, where the authors' code shows them those of the generators' batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from ganfast import losses
from ganfast.errors import InvalidValue
from ganfast.models.dcgan import initialise
from ganfast.models.translation import Generator, ImagePool, PatchCritic
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe, Terms
from ganfast.recipes._options import Between, Channels, CriticSteps, Ema, ImageSize, LearningRate, Width

ABOUT = About(
    "Zhu et al. 2017, arXiv:1703.10593", "two residual generators, two patch critics", "least squares + cycle + identity"
)
DEFAULTS = {"batch": 1, "decay": "linear"}  # section 4: batches of one, step sizes falling over the second half


def recipe(
    *,
    image_size: ImageSize = 128,
    channels: Channels = 3,
    width: Width = 64,
    blocks: Annotated[int, "residual blocks; 0 takes nine from 256 pixels on, six from 128, three below", Between(0)] = 0,
    cycle: Annotated[float, "lambda, the weight of the cycle terms", Between(0)] = 10.0,
    identity: Annotated[float, "weight of the identity terms, relative to the cycle terms", Between(0)] = 0.5,
    pool: Annotated[int, "images in the history that the critics see", Between(1)] = 50,
    critic_steps: CriticSteps = 1,
    lr: LearningRate = 2e-4,
    ema: Ema = 0.0,
) -> Recipe:
    if image_size < 16 or image_size % 4:
        raise InvalidValue(f"cyclegan needs images of at least 16 pixels, a multiple of 4, got {image_size}")
    width, blocks = width or 64, blocks or (9 if image_size >= 256 else 6 if image_size >= 128 else 3)
    halvings = 3 if image_size >= 128 else 2 if image_size >= 32 else 1
    networks = {
        "AB": Generator(channels, width, blocks),
        "BA": Generator(channels, width, blocks),
        "D_A": PatchCritic(channels, width, halvings),
        "D_B": PatchCritic(channels, width, halvings),
    }
    for network in networks.values():
        initialise(network)
    history = {name: ImagePool(pool, (channels, image_size, image_size)) for name in ("history_a", "history_b")}

    def generators(nets: Named, batch: Named) -> Terms:
        fake_a, fake_b = nets.BA(batch.b), nets.AB(batch.a)
        terms = {
            "adversarial_ab": losses.least_squares_generator(nets.D_B(fake_b)),
            "adversarial_ba": losses.least_squares_generator(nets.D_A(fake_a)),
            "cycle_a": cycle * F.l1_loss(nets.BA(fake_b), batch.a),
            "cycle_b": cycle * F.l1_loss(nets.AB(fake_a), batch.b),
        }
        if identity:
            terms["identity_a"] = cycle * identity * F.l1_loss(nets.BA(batch.a), batch.a)
            terms["identity_b"] = cycle * identity * F.l1_loss(nets.AB(batch.b), batch.b)
        return Terms(terms)

    def critics(nets: Named, batch: Named) -> Terms:
        real_a, real_b = nets.D_A(batch.a), nets.D_B(batch.b)
        fake_a = nets.D_A(nets.history_a(nets.BA(batch.b)))
        fake_b = nets.D_B(nets.history_b(nets.AB(batch.a)))
        terms = {"a": losses.least_squares_critic(real_a, fake_a), "b": losses.least_squares_critic(real_b, fake_b)}
        watch = {"D(real)": (real_a.mean() + real_b.mean()) / 2, "D(fake)": (fake_a.mean() + fake_b.mean()) / 2}
        return Terms(terms, watch)

    def sample(nets: Named, inputs: Named) -> Tensor:
        translated: Tensor = nets.AB(inputs.a)
        return translated

    def preview(nets: Named, inputs: Named) -> Mapping[str, Tensor]:
        fake_b, fake_a = nets.AB(inputs.a), nets.BA(inputs.b)
        pictures = {"A": inputs.a, "A to B": fake_b, "and back": nets.BA(fake_b)}
        return pictures | {"B": inputs.b, "B to A": fake_a, "and back again": nets.AB(fake_a)}

    return Recipe(
        name="cyclegan",
        networks=networks | history,
        phases=(
            Phase("generators", updates=("AB", "BA"), reads=("a", "b"), loss=generators),
            Phase("critics", updates=("D_A", "D_B"), repeat=critic_steps, reads=("a", "b"), loss=critics),
        ),
        latent=None,
        optimizers={name: Optimizer("Adam", lr=lr, betas=(0.5, 0.999)) for name in networks},
        ema={"AB": ema, "BA": ema},
        sample=sample,
        preview=preview,
        sample_reads=("a", "b"),
        defaults=DEFAULTS,
        about=ABOUT,
    )
