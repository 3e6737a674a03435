"""Walks and sums in the space that a trained generator draws from, as images.

Latent vectors are numbered: number i of a seed is the same one whatever else is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ganfast.engine.randomness import seeded
from ganfast.engine.trainer import Trainer
from ganfast.errors import InvalidValue
from ganfast.interpolation import lerp, slerp
from ganfast.recipe import Named

Pixels = NDArray[np.uint8]
Kind = Literal["spherical", "linear"]
WAYS = {"spherical": slerp, "linear": lerp}
_NUMBERED, _AROUND = 1 << 40, 1 << 41  # words that keep these draws apart from others of the seed


def latents(trainer: Trainer, numbers: Sequence[int], *, seed: int = 0, labels: int | None = None) -> Named:
    """The generator's inputs ``z`` (n, latent_dim), and ``y`` (n,) where it takes labels, of these numbers of a seed.

    ``labels`` asks for one class. Raises InvalidValue for a recipe that has no latent space or makes no images, a negative
    number, and labels that the recipe does not take.
    """
    recipe = trainer.recipe
    if recipe.latent is None or recipe.sample_reads:
        raise InvalidValue(f"recipe {recipe.name!r} makes its samples from data: it has no latent space")
    if not trainer.data.image_size:
        raise InvalidValue(f"recipe {recipe.name!r} was trained on points, and these are pictures")
    if not len(numbers) or min(numbers) < 0:
        raise InvalidValue(f"expected numbers of samples, at least one and from 0 on, got {list(numbers)}")
    drawn = []
    for number in numbers:
        with seeded(trainer.device, seed, _NUMBERED, number):
            drawn.append(recipe.latent.sample(1, trainer.device, labels=None if labels is None else torch.tensor(labels)))
    return Named({name: torch.cat([inputs[name] for inputs in drawn]) for name in drawn[0]})


def interpolation(
    trainer: Trainer, *, pairs: int = 8, steps: int = 9, kind: Kind = "spherical", seed: int = 0, labels: int | None = None
) -> Pixels:
    """Images (pairs, steps, H, W, C) on the way from sample 2 p to sample 2 p + 1 of a seed, both included.

    A pair keeps the class of its first sample. The straight line passes through vectors that are shorter than any that a normal
    generator was trained on; the great circle does not (White 2016). Raises InvalidValue for another ``kind`` or fewer than two
    steps, and as :func:`latents`.
    """
    if kind not in WAYS:
        raise InvalidValue(f"kind: expected {' or '.join(WAYS)}, got {kind!r}")
    if pairs < 1 or steps < 2:
        raise InvalidValue(f"expected at least 1 pair and 2 steps, got {pairs} and {steps}")
    ends = latents(trainer, range(2 * pairs), seed=seed, labels=labels)
    first = Named({name: values[::2].repeat_interleave(steps, dim=0) for name, values in ends.items()})
    last = ends.z[1::2].repeat_interleave(steps, dim=0)
    along = torch.linspace(0, 1, steps, dtype=torch.float64).repeat(pairs)
    way = WAYS[kind](first.z.double(), last.double(), along.to(last.device))
    images = trainer.generate(Named({**first, "z": way.to(last)}))
    return images.reshape(pairs, steps, *images.shape[1:])


class Arithmetic(NamedTuple):
    """Of a - b + c: the ``examples`` (3, k) of each term, the images of their ``means`` (3,), and the ``results`` (3, 3).

    All are uint8, with (H, W, C) behind these. In the middle of the results is the sum itself, around it what lies near.
    """

    examples: tuple[Pixels, Pixels, Pixels]
    means: Pixels
    results: Pixels


def arithmetic(
    trainer: Trainer,
    a: Sequence[int],
    b: Sequence[int],
    c: Sequence[int],
    *,
    spread: float = 0.25,
    seed: int = 0,
    labels: int | None = None,
) -> Arithmetic:
    """mean(a) - mean(b) + mean(c) of numbered latent vectors, usually three each (Radford et al. 2016, section 6.3.2).

    One vector alone gives unstable results, says the paper, which picks by eye three that show the same. Eight of the nine
    results have noise added, uniform from -``spread`` to ``spread``, as there. Where the generator takes labels, means keep the
    class of their first example, and the results that of a's. Raises InvalidValue as :func:`latents`, and for a negative spread.
    """
    if not spread >= 0:
        raise InvalidValue(f"spread: expected at least 0, got {spread}")
    terms = [latents(trainer, numbers, seed=seed, labels=labels) for numbers in (a, b, c)]
    means = [term.z.mean(dim=0) for term in terms]
    total = means[0] - means[1] + means[2]
    with seeded(trainer.device, seed, _AROUND):
        noise = (2 * torch.rand(9, len(total), device=trainer.device) - 1) * spread
    noise[4] = 0
    firsts = [Named({name: values[:1] for name, values in term.items()}) for term in terms]
    results = trainer.generate(Named({**_repeated(firsts[0], 9), "z": total + noise}))
    of_means = [trainer.generate(Named({**first, "z": mean[None]})) for first, mean in zip(firsts, means, strict=True)]
    examples = tuple(trainer.generate(term) for term in terms)
    return Arithmetic(examples, np.concatenate(of_means), results.reshape(3, 3, *results.shape[1:]))  # type: ignore[arg-type]


def _repeated(inputs: Named, n: int) -> Named:
    return Named({name: values.repeat_interleave(n, dim=0) for name, values in inputs.items()})
