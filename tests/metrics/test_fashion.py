from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ganfast.data import open_dataset
from ganfast.errors import Damaged, InvalidType, InvalidValue
from ganfast.metrics import fashion, frechet_distance_from_features

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def rows() -> tuple[Pixels, NDArray[np.int64]]:
    group = open_dataset("fashion-mnist-10k").groups["real"]
    return group["real"], group["labels"]


def resized(images: Pixels, size: int, filter: Image.Resampling) -> Pixels:
    return np.stack([np.asarray(Image.fromarray(image[..., 0]).resize((size, size), filter)) for image in images])[..., None]


def test_it_classifies_the_test_split_as_its_card_says(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images, labels = rows
    share = (fashion.logits(images).argmax(1).numpy() == labels).mean()
    assert share > 0.91
    assert share == pytest.approx(fashion.card()["accuracy"], abs=0.002)


@pytest.mark.parametrize(
    ("size", "filter"), [(32, Image.Resampling.LANCZOS), (32, Image.Resampling.BILINEAR), (64, Image.Resampling.BICUBIC)]
)
def test_pictures_that_were_enlarged_are_mapped_back(
    rows: tuple[Pixels, NDArray[np.int64]], size: int, filter: Image.Resampling
) -> None:
    images, labels = rows[0][:1000], rows[1][:1000]
    plain = (fashion.logits(images).argmax(1).numpy() == labels).mean()
    enlarged = (fashion.logits(resized(images, size, filter)).argmax(1).numpy() == labels).mean()
    assert enlarged > plain - 0.02


def test_grey_in_three_channels_is_grey(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images = rows[0][:50]
    torch.testing.assert_close(fashion.features(images.repeat(3, axis=3)), fashion.features(images), rtol=1e-4, atol=1e-5)


def test_colour_becomes_luma() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (6, 1, 1, 3), dtype=np.uint8)
    luma = np.stack([np.asarray(Image.fromarray(colour).convert("L")) for colour in colours])[..., None]
    in_colour, in_grey = (fashion.features(np.broadcast_to(c, (6, 28, 28, c.shape[3])).copy()) for c in (colours, luma))
    # Pillow rounds to whole grey levels
    torch.testing.assert_close(in_colour, in_grey, rtol=0.05, atol=0.02)


def test_an_edge_that_bicubic_overshoots_stays_in_range() -> None:
    edge = torch.zeros(1, 40, 40, 1, dtype=torch.uint8)
    edge[:, :, 20:] = 255
    made = fashion.prepared(edge)
    assert made.min() == 0 and made.max() == 1


def test_features_do_not_depend_on_the_batch_and_types_agree(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images = rows[0][:700]
    together = fashion.features(images)
    assert together.shape == (700, 128)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    alone = torch.cat([fashion.features(images[i : i + 1]) for i in range(0, 700, 100)])
    torch.testing.assert_close(together[::100], alone, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fashion.features(torch.from_numpy(images.copy())), together)


def test_logits_are_the_head_on_the_features(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images = rows[0][:20]
    with torch.no_grad():
        torch.testing.assert_close(fashion.fashion_cnn().head(fashion.features(images)), fashion.logits(images))


def test_the_network_comes_in_evaluation_mode_and_is_ones_own(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    network = fashion.fashion_cnn()
    assert not any(module.training for module in network.modules())
    before = fashion.logits(rows[0][:4])
    with torch.no_grad():
        network.head.weight.zero_()
    assert torch.equal(fashion.logits(rows[0][:4]), before)


def test_the_report_counts_classes(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images, labels = rows
    chosen = np.concatenate([np.flatnonzero(labels == 1)[:197], np.flatnonzero(labels == 8)[:1], np.flatnonzero(labels == 9)[:2]])
    report = fashion.fashion_report(images[chosen])
    assert list(report["histogram"]) == list(fashion.CLASSES)
    assert sum(report["histogram"].values()) == 200
    assert report["histogram"]["trouser"] >= 190
    assert 0.9 < report["confidence"] <= 1.0
    whole = fashion.fashion_report(images[:1000])
    assert whole["classes"] == 10
    assert all(60 < count < 145 for count in whole["histogram"].values())


def test_a_class_is_present_from_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    def assigned(counts: list[int]) -> torch.Tensor:
        return torch.repeat_interleave(torch.eye(10) * 50, torch.tensor(counts + [0] * (10 - len(counts))), dim=0)

    for counts, classes in (([198, 2], 2), ([199, 1], 1), ([100], 1)):
        monkeypatch.setattr(fashion, "logits", lambda images, counts=counts: assigned(counts))
        assert fashion.fashion_report(np.zeros((sum(counts), 28, 28, 1), np.uint8))["classes"] == classes


def test_the_distance_orders_pictures_by_how_real_they_are(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images = rows[0]
    real, fresh = images[:500], images[500:1000]
    reference = fashion.fashion_statistics(real)
    noisy = (fresh.astype(int) + np.random.default_rng(0).integers(-40, 41, fresh.shape)).clip(0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, fresh.shape, dtype=np.uint8)
    fresh_distance, noisy_distance, noise_distance = (fashion.fashion_frechet(fake, reference) for fake in (fresh, noisy, noise))
    assert 0 < fresh_distance < 0.2 * noisy_distance < 0.2 * noise_distance
    assert fashion.fashion_frechet(fresh, real) == fresh_distance
    expected = frechet_distance_from_features(fashion.features(fresh), fashion.features(real))
    assert fresh_distance == pytest.approx(expected, rel=1e-9)
    assert fashion.fashion_frechet(real, real) < 1e-9
    assert fashion.FRECHET_NAME == "FD[fashion-cnn]"


def test_refusals(rows: tuple[Pixels, NDArray[np.int64]]) -> None:
    images = rows[0][:3]
    with pytest.raises(InvalidType, match="images in uint8, got float32"):
        fashion.features(images.astype(np.float32))
    with pytest.raises(InvalidValue, match=r"images \(n, H, W, 1 or 3\) with n >= 1, got \(3, 28, 28\)"):
        fashion.features(images[..., 0])
    with pytest.raises(InvalidValue, match=r"got \(3, 28, 28, 4\)"):
        fashion.logits(images.repeat(4, axis=3))
    with pytest.raises(InvalidValue, match=r"got \(0, 28, 28, 1\)"):
        fashion.fashion_report(images[:0])
    with pytest.raises(InvalidValue, match="fake: a covariance needs at least two samples, got 1"):
        fashion.fashion_frechet(images[:1], images)
    with pytest.raises(InvalidValue, match="real: a covariance needs at least two samples, got 1"):
        fashion.fashion_frechet(images, images[:1])
    with pytest.raises(InvalidType, match="expected real in uint8, got float32"):
        fashion.fashion_frechet(images, images.astype(np.float32))
    with pytest.raises(InvalidValue, match="cov of real holds 16384 values that are NaN"):
        fashion.fashion_frechet(images, (torch.zeros(128), torch.full((128, 128), torch.nan)))


def test_one_flipped_bit_in_the_weights_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = resources.files("ganfast.metrics") / "weights"
    weights = bytearray((source / "fashion-cnn.safetensors").read_bytes())
    assert hashlib.sha256(weights).hexdigest() == fashion.card()["sha256"]
    assert len(weights) < 600_000
    weights[-100] ^= 1
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "fashion-cnn.safetensors").write_bytes(weights)
    (tmp_path / "weights" / "fashion-cnn.json").write_text((source / "fashion-cnn.json").read_text())
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(Damaged, match=r"fashion-cnn\.safetensors has SHA-256 .*, expected .*: reinstall"):
        fashion.fashion_cnn()


def test_importing_the_metrics_is_light() -> None:
    heavy = ["matplotlib", "PIL", "rich", "scipy", "tensorboard", "safetensors"]
    script = (
        f"import sys, ganfast.metrics.fashion, ganfast.nn, ganfast.penalties; print([m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
