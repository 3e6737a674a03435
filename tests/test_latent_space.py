from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import ganfast
from ganfast import latent_space, recipes
from ganfast.engine.randomness import seeded
from ganfast.engine.samples import to_uint8
from ganfast.errors import InvalidValue
from ganfast.interpolation import lerp, slerp
from ganfast.recipe import Named

DIM = 64


def trainer(name: str = "dcgan", **options: Any) -> ganfast.Trainer:
    """Of a recipe whose samples are their own latent vectors, as images of 8 x 8; a class is added to every pixel."""
    with seeded(torch.device("cpu"), 0):
        recipe = recipes.get(name, image_size=8, channels=1, width=4, latent_dim=DIM, **options)

    def sample(nets: Named, inputs: Named) -> torch.Tensor:
        shift = 0.1 * inputs.y[:, None] if "y" in inputs else 0
        return (inputs.z / 4 + shift).reshape(-1, 1, 8, 8)

    images = np.zeros((16, 8, 8, 1), np.uint8)
    data: Any = images
    if "classes" in options:
        data = ganfast.data.Dataset("grey", {"real": {"real": images, "labels": np.arange(16) % options["classes"]}})
    return ganfast.Trainer(dataclasses.replace(recipe, sample=sample), data, batch=4)


def drawn(z: torch.Tensor) -> np.ndarray:
    return to_uint8((z / 4).reshape(-1, 1, 8, 8))


def test_number_i_is_the_same_whatever_else_is_drawn() -> None:
    made = trainer()
    z = latent_space.latents(made, [0, 5, 2]).z
    assert z.shape == (3, DIM)
    assert torch.equal(latent_space.latents(made, range(6)).z[[0, 5, 2]], z)
    assert not torch.equal(latent_space.latents(made, [0], seed=1).z, z[:1])
    many = latent_space.latents(made, range(400)).z
    assert abs(many.mean()) < 4 / np.sqrt(400 * DIM) and len(many.unique(dim=0)) == 400


def test_drawing_leaves_training_and_other_draws_alone() -> None:
    one, other = trainer(), trainer()
    before = torch.get_rng_state()
    latent_space.interpolation(one, pairs=2, steps=3)
    latent_space.arithmetic(one, [1], [2], [3])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(network.training for network in one.recipe.networks.values())
    assert {name: value.item() for name, value in one.step().items()} == {
        name: value.item() for name, value in other.step().items()
    }


@pytest.mark.parametrize(("kind", "way"), [("spherical", slerp), ("linear", lerp)])
def test_ways_lead_from_one_sample_to_the_next(kind: Any, way: Any) -> None:
    made = trainer()
    images = latent_space.interpolation(made, pairs=3, steps=5, kind=kind, seed=2)
    assert images.shape == (3, 5, 8, 8, 1)
    z = latent_space.latents(made, range(6), seed=2).z
    assert np.array_equal(images[:, 0], drawn(z[::2]))
    assert np.array_equal(images[:, -1], drawn(z[1::2]))
    assert np.array_equal(images[1, 1], drawn(way(z[2].double(), z[3].double(), 0.25).float())[0])


def test_sums_are_of_means_and_the_middle_is_the_sum() -> None:
    made = trainer()
    found = latent_space.arithmetic(made, [0, 1, 2], [3, 4, 5], [6, 7], spread=0.25)
    z = latent_space.latents(made, range(8)).z
    means = torch.stack([z[:3].mean(0), z[3:6].mean(0), z[6:].mean(0)])
    assert [len(examples) for examples in found.examples] == [3, 3, 2]
    assert np.array_equal(np.concatenate(found.examples), drawn(z))
    assert np.array_equal(found.means, drawn(means))
    assert found.results.shape == (3, 3, 8, 8, 1)
    total = drawn(means[0] - means[1] + means[2])[0].astype(int)
    away = np.abs(found.results.astype(int) - total).max(axis=(2, 3, 4))
    # a quarter of a latent's unit is 0.25 / 4 of 127.5 grey levels
    assert away[1, 1] == 0
    assert (np.delete(away.ravel(), 4) > 4).all() and (away <= 0.25 / 4 * 127.5 + 1).all()
    assert (latent_space.arithmetic(made, [0], [0], [1], spread=0).results == drawn(z[1])[0]).all()


def test_classes_stay_with_the_first_of_a_pair_or_are_asked_for() -> None:
    made = trainer("cgan", classes=4)
    inputs = latent_space.latents(made, range(4))
    images = latent_space.interpolation(made, pairs=2, steps=3, kind="linear")
    for pair in range(2):
        y = inputs.y[2 * pair]
        assert np.array_equal(images[pair, 2], to_uint8((inputs.z[2 * pair + 1] / 4 + 0.1 * y).reshape(1, 1, 8, 8))[0])
    asked = latent_space.latents(made, range(20), labels=3)
    assert asked.y.tolist() == [3] * 20
    assert len(latent_space.latents(made, range(20)).y.unique()) == 4
    found = latent_space.arithmetic(made, [0, 1], [2], [3], spread=0)
    z, y = inputs.z, inputs.y
    total = (z[0] + z[1]) / 2 - z[2] + z[3]
    assert np.array_equal(found.results[0, 0], to_uint8((total / 4 + 0.1 * y[0]).reshape(1, 1, 8, 8))[0])


def test_the_moving_averages_make_the_images() -> None:
    recipe = recipes.get("dcgan", image_size=8, channels=1, width=4, ema=0.999)
    made = ganfast.Trainer(recipe, np.zeros((16, 8, 8, 1), np.uint8), batch=4)
    with torch.no_grad():
        for weight in made.networks.G_ema.parameters():
            weight.normal_()
    inputs = latent_space.latents(made, range(300))
    with torch.no_grad():
        truth = to_uint8(made.networks.G_ema.eval()(inputs.z))
    assert truth.std() > 10
    # chunks of another length are summed in another order
    assert np.abs(made.generate(inputs).astype(int) - truth).max() <= 1


def test_refusals() -> None:
    made = trainer()
    points = ganfast.Trainer("gan", "toy:ring8", width=4, batch=4)
    for call, message in [
        (lambda: latent_space.latents(points, [0]), "trained on points, and these are pictures"),
        (lambda: latent_space.latents(made, []), r"numbers of samples, at least one and from 0 on, got \[\]"),
        (lambda: latent_space.arithmetic(made, [0], [-1], [2]), r"from 0 on, got \[-1\]"),
        (lambda: latent_space.arithmetic(made, [0], [1], [2], spread=-1), "spread: expected at least 0, got -1"),
        (lambda: latent_space.interpolation(made, kind="curly"), "kind: expected spherical or linear, got 'curly'"),  # type: ignore[arg-type]
        (lambda: latent_space.interpolation(made, steps=1), "at least 1 pair and 2 steps, got 8 and 1"),
        (lambda: latent_space.interpolation(made, labels=1), "takes no labels"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    sides = {name: {name: np.zeros((4, 16, 16, 3), np.uint8)} for name in ("a", "b")}
    pair = ganfast.Trainer("cyclegan", ganfast.data.Dataset("pair", sides), width=4, batch=2)
    with pytest.raises(InvalidValue, match="'cyclegan' makes its samples from data: it has no latent space"):
        latent_space.latents(pair, [0])
