"""Latents: what a generator is fed."""

from __future__ import annotations

import pytest
import torch

from ganfast.errors import InvalidValue
from ganfast.latent import Codes, LabelledNoise, Noise

CPU = torch.device("cpu")


def test_noise_has_the_distribution_it_names() -> None:
    torch.manual_seed(0)
    normal, uniform = Noise(4).sample(50_000, CPU)["z"], Noise(4, uniform=True).sample(50_000, CPU)["z"]
    # 200,000 draws: standard errors of mean and variance are below 0.004, so 0.02 is five of them
    assert normal.mean().abs() < 0.02 and (normal.var() - 1).abs() < 0.02
    assert uniform.abs().max() <= 1 and uniform.mean().abs() < 0.02 and (uniform.var() - 1 / 3).abs() < 0.02


def test_truncation_draws_from_the_normal_cut_off() -> None:
    torch.manual_seed(0)
    z = Noise(2).sample(100_000, CPU, truncation=0.5)["z"]
    assert z.abs().max() <= 0.5
    # a normal truncated at +-0.5 has variance 1 - 2 * 0.5 * pdf(0.5) / (2 cdf(0.5) - 1) = 0.0807; clipping would give 0.19
    assert z.var().item() == pytest.approx(0.0807, abs=0.002)
    with pytest.raises(InvalidValue, match="truncation above 0"):
        Noise(2).sample(1, CPU, truncation=0.0)


def test_labels_are_asked_for_or_drawn_evenly() -> None:
    torch.manual_seed(0)
    latent = LabelledNoise(3, classes=5)
    assert torch.bincount(latent.sample(50_000, CPU)["y"]).min() > 9_500
    assert latent.sample(4, CPU, labels=2)["y"].tolist() == [2, 2, 2, 2]
    assert latent.sample(3, CPU, labels=[0, 4, 1])["y"].tolist() == [0, 4, 1]
    for labels, message in ((7, "from 0 to 4"), ([-1, 0], "from 0 to 4"), ([1, 2, 3], "2 integers"), (0.5, "2 integers")):
        with pytest.raises(InvalidValue, match=message):
            latent.sample(2, CPU, labels=labels)
    with pytest.raises(InvalidValue, match="takes no labels"):
        Noise(3).sample(2, CPU, labels=1)


def test_a_grid_row_shares_noise_and_runs_through_the_classes() -> None:
    grid = LabelledNoise(3, classes=4).grid(10, CPU)
    assert grid["y"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert torch.equal(grid["z"][0], grid["z"][3]) and not torch.equal(grid["z"][0], grid["z"][4])


def test_codes_come_back_out_of_z() -> None:
    torch.manual_seed(0)
    codes = Codes(noise=5, categories=3, continuous=2)
    z = codes.sample(1000, CPU)["z"]
    category, continuous = codes.split(z)
    assert z.shape == (1000, codes.dim) == (1000, 10)
    assert torch.equal(z[:, 5:8], torch.nn.functional.one_hot(category, 3).float())
    assert torch.equal(continuous, z[:, 8:]) and continuous.abs().max() <= 1 and continuous.std() > 0.5
    grid = codes.grid(9, CPU)["z"]
    category, continuous = codes.split(grid)
    assert category.tolist() == [0, 1, 2] * 3
    assert continuous[:, 0].tolist() == [-1] * 3 + [0] * 3 + [1] * 3
    assert torch.equal(grid[:, :5], grid[:1, :5].expand(9, 5))
