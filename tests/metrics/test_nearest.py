from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from ganfast.data import open_dataset
from ganfast.errors import InvalidValue
from ganfast.metrics import nearest as module
from ganfast.metrics import rows
from ganfast.metrics.nearest import nearest_neighbours


@pytest.mark.parametrize(("n", "m", "k"), [(50, 300, 5), (1, 1, 1), (7, 12, 12)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_have_the_neighbours_of_a_tree(n: int, m: int, k: int, dtype: type) -> None:
    rng = np.random.default_rng(n)
    samples, training = rng.standard_normal((n, 6)).astype(dtype), rng.standard_normal((m, 6)).astype(dtype)
    distances, indices = cKDTree(training.astype(np.float64)).query(samples.astype(np.float64), k=np.arange(1, k + 1))
    found = nearest_neighbours(samples, torch.from_numpy(training), k=k)
    assert found.indices.numpy().tolist() == indices.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-12)


def test_blocks_of_either_side_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    samples, training = rng.integers(0, 3, (40, 4)), rng.integers(0, 3, (90, 4)) + 0.001 * rng.random((90, 4))
    together = nearest_neighbours(samples, training, k=3)
    monkeypatch.setattr(module, "_KNOWN", 16)
    monkeypatch.setattr(rows, "_CELLS", 100)
    apart = nearest_neighbours(samples, training, k=3)
    assert torch.equal(apart.indices, together.indices)
    assert torch.equal(apart.distances, together.distances)


def test_copies_of_training_images_are_found_at_distance_zero() -> None:
    images = open_dataset("fashion-mnist-10k").groups["real"]["real"]
    copies = np.array([17, 4242, 9999])
    rng = np.random.default_rng(2)
    noisy = (images[copies].astype(int) + rng.integers(-20, 21, images[copies].shape)).clip(0, 255).astype(np.uint8)
    found = nearest_neighbours(np.concatenate([images[copies], noisy]), images, k=4)
    assert found.indices[:, 0].tolist() == [*copies, *copies]
    assert found.distances[:3, 0].tolist() == [0, 0, 0]
    truth = np.linalg.norm((noisy.astype(float) - images[copies]).reshape(3, -1) / 255, axis=1)
    assert found.distances[3:, 0].tolist() == pytest.approx(truth.tolist(), rel=1e-12)
    assert (found.distances.diff(dim=1) >= 0).all()


def test_copies_in_tight_clusters_that_lie_far_apart_are_found() -> None:
    """Products lose the digits that tell the samples of a cluster from one another, and with them who is nearest."""
    rng = np.random.default_rng(4)
    training = np.concatenate([1e-3 * rng.standard_normal((500, 4)) + at for at in (0, 1e6)])
    asked = [3, 400, 600, 999]
    distances, indices = cKDTree(training).query(training[asked], k=[1, 2, 3])
    found = nearest_neighbours(training[asked], training, k=3)
    assert found.indices[:, 0].tolist() == asked and found.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-9)


def test_copies_of_features_far_from_the_origin_are_at_distance_zero() -> None:
    rng = np.random.default_rng(3)
    training = (1e4 + rng.standard_normal((500, 64))).astype(np.float32)
    training[100:130] = training[100]  # more equals than neighbours are asked for
    found = nearest_neighbours(training, training, k=3)
    assert (found.distances[:, 0] == 0).all()
    others = np.r_[0:100, 130:500]
    assert found.indices[others, 0].tolist() == others.tolist()
    assert set(found.indices[100:130].flatten().tolist()) <= set(range(100, 130))


def test_refusals() -> None:
    image = np.zeros((2, 4, 4, 1), np.uint8)
    for call, message in [
        (
            lambda: nearest_neighbours(np.zeros((2, 3)), np.zeros((5, 4)), k=1),
            r"of one size, both images or both features, got \(2, 3\) and \(5, 4\)",
        ),
        (lambda: nearest_neighbours(image, image[:, :3], k=1), r"of one size, .* got \(2, 4, 4, 1\) and \(2, 3, 4, 1\)"),
        (lambda: nearest_neighbours(image, image, k=3), "k: expected at most the 2 training samples, got 3"),
        (lambda: nearest_neighbours(image, image, k=0), "k: expected at least 1, got 0"),
        (lambda: nearest_neighbours(np.full((2, 3), np.nan), np.zeros((5, 3))), "samples holds 6 values that are NaN or Inf"),
        (lambda: nearest_neighbours(np.zeros((0, 3)), np.zeros((5, 3))), "samples: expected at least 1 sample, got 0"),
        (lambda: nearest_neighbours(image[0], image), r"samples: expected features \(N, D\), got \(4, 4, 1\)"),
    ]:
        with pytest.raises(InvalidValue, match=message):
            call()
    with pytest.raises(InvalidValue, match=r"both images or both features, got \(2, 4, 4, 1\) and \(5, 16\)"):
        nearest_neighbours(image, np.zeros((5, 16)), k=1)
