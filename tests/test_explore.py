"""``ganfast latent`` and ``ganfast nearest``: the pictures they leave, what they say, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ganfast
from ganfast import latent_space
from ganfast.engine import sheets

Result = tuple[int, str, str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    ganfast.train("dcgan", "fashion-mnist-10k", steps=2, out=out, width=4, batch=4)
    return out


def test_the_latent_space_in_three_pictures(run: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    trainer = ganfast.Trainer.resume(run, training=False)
    place = tmp_path / "new" / "picture.png"

    def shown() -> np.ndarray:
        return np.asarray(Image.open(place))

    assert command("latent", run, "--out", place, "--n", 5, "--seed", 3)[:2] == (
        0,
        f"5 numbered samples of seed 3, of dcgan, iteration 2, in {place}\n",
    )
    images = trainer.generate(latent_space.latents(trainer, range(5), seed=3))
    assert np.array_equal(shown(), np.asarray(sheets.numbered(images)))

    code, out, _ = command("latent", run, "--out", place, "--interpolate", 4, "--pairs", 2, "--kind", "linear")
    assert code == 0 and out.startswith("2 linear ways of 4 steps, of dcgan")
    assert np.array_equal(shown(), np.asarray(sheets.ways(latent_space.interpolation(trainer, pairs=2, steps=4, kind="linear"))))

    assert command("latent", run, "--out", place, "--arithmetic", "0,1", "2", "3,4")[0] == 0
    found = latent_space.arithmetic(trainer, [0, 1], [2], [3, 4])
    terms = list(zip(("", "-", "+"), "abc", found.examples, found.means, strict=True))
    assert np.array_equal(shown(), np.asarray(sheets.equation(terms, found.results)))


def test_copies_are_found_and_framed(command: Callable[..., Result], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    samples = np.concatenate([training[[7, 50]], rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)])
    np.savez(tmp_path / "training.npz", images=training)
    np.savez(tmp_path / "samples.npz", images=samples)
    place = tmp_path / "near.png"
    arguments = ["nearest", tmp_path / "samples.npz", "--against", tmp_path / "training.npz", "--out", place]
    code, out, err = command(*arguments, "--rows", 3, "--k", 2)
    assert (code, err) == (0, "")
    assert out.startswith("2 of 5 are copies; the nearest training image is 0 away at least and ")
    orange = (np.asarray(Image.open(place)) == [0xD5, 0x5E, 0x00]).all(axis=2)
    assert orange.any()
    code, out, _ = command(*arguments, "--network", "fashion-cnn")
    assert code == 0 and out.startswith("2 of 5 are copies")


def test_a_run_is_compared_with_its_own_data(run: Path, command: Callable[..., Result], tmp_path: Path) -> None:
    code, out, _ = command("nearest", run, "--n", 6, "--rows", 2, "--k", 3, "--out", tmp_path / "near.png")
    assert code == 0 and out.startswith("0 of 6 are copies")
    assert (tmp_path / "near.png").stat().st_size > 1000


def test_refusals_are_one_line_and_leave_nothing(run: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", images=np.zeros((4, 8, 8, 1), np.uint8))
    png = tmp_path / "x.png"
    for arguments, message in [
        (["latent", run, "--out", tmp_path / "x.jpg"], "expected a name ending in .png"),
        (
            ["latent", run, "--out", png, "--arithmetic", "1,2", "a", "3"],
            "--arithmetic: expected numbers of samples such as 1,5,7, got 'a'",
        ),
        (
            ["latent", run, "--out", png, "--interpolate", 3, "--arithmetic", "1", "2", "3"],
            "--interpolate or --arithmetic, got both",
        ),
        (["latent", run, "--out", png, "--labels", 3], "takes no labels"),
        (["latent", tmp_path / "none", "--out", png], "there is no folder"),
        (["nearest", tmp_path / "small.npz", "--out", png], "expected --against, the training images"),
        (["nearest", "toy:ring8", "--against", "fashion-mnist-10k", "--out", png], "holds points"),
        (
            ["nearest", tmp_path / "small.npz", "--against", tmp_path / "small.npz", "--out", png],
            "--k: expected less than the 4 training",
        ),
    ]:
        assert message in refused(*arguments)
