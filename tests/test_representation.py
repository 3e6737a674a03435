"""What a critic has learned: its layers' features, k-means features, the linear classifier, and the protocol around them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import LinearSVC
from torch import Tensor, nn

import ganfast
from ganfast import recipes
from ganfast.data import open_dataset
from ganfast.errors import InvalidData, InvalidValue
from ganfast.nn import fuse
from ganfast.representation import kmeans, protocol, svm
from ganfast.representation.critic import critic_of, layer_features
from ganfast.representation.features import by_critic, by_kmeans, extract, pixels, standardise
from ganfast.representation.protocol import COSTS, _Part, _untrained, represent, tuned
from ganfast.representation.splits import draws, split

Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the classifier


def mixture(n: int, seed: int, classes: int = 4, dims: int = 12, apart: float = 1.0) -> tuple[Tensor, Tensor]:
    """Gaussian classes that overlap, in features of different scales."""
    draw = generator(seed)
    centres = apart * torch.randn(classes, dims, dtype=torch.float64, generator=generator(99))
    labels = torch.randint(classes, (n,), generator=draw)
    scales = torch.logspace(-1, 1, dims, dtype=torch.float64)
    return (centres[labels] + torch.randn(n, dims, dtype=torch.float64, generator=draw)) * scales, labels


@pytest.mark.parametrize("cost", [0.01, 1.0, 30.0])
def test_the_classifier_is_scikit_learns(cost: float) -> None:
    x, y = mixture(400, 0)
    other, _ = mixture(300, 1)
    theirs = LinearSVC(C=cost, tol=1e-8, max_iter=100_000, dual=False).fit(x.numpy(), y.numpy())
    weights = svm.fit(x, y, 4, cost)
    published = torch.from_numpy(np.concatenate([theirs.coef_, theirs.intercept_[:, None]], axis=1))
    least = svm.objective(x, y, published, cost)
    assert svm.objective(x, y, weights, cost) == pytest.approx(least, rel=1e-5)  # what the gradient's bound leaves
    assert (svm.scores(other, weights).argmax(dim=0).numpy() == theirs.predict(other.numpy())).all()


@pytest.mark.parametrize("cost", [0.05, 2.0])
def test_the_objective_is_least_where_calculus_says(cost: float) -> None:
    """Points 1 and -1 of two classes: the intercept is 0 by symmetry, and w^2 / 2 + 2 C (1 - w)^2 is least at 4 C / (1 + 4 C)."""
    x, y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([0, 1])
    weights = svm.fit(x, y, 2, cost)
    w = 4 * cost / (1 + 4 * cost)
    torch.testing.assert_close(weights, torch.tensor([[w, 0.0], [-w, 0.0]], dtype=torch.float64), rtol=0, atol=1e-4)
    assert svm.objective(x, y, weights, cost) == pytest.approx(2 * (w**2 / 2 + 2 * cost * (1 - w) ** 2), rel=1e-6)


def test_the_classifier_repeats_and_forgets_where_it_began() -> None:
    x, y = mixture(300, 2)
    weights = svm.fit(x, y, 4, 1.0)
    assert torch.equal(svm.fit(x, y, 4, 1.0), weights)
    elsewhere = svm.fit(x, y, 4, 1.0, torch.randn(weights.shape, dtype=torch.float64, generator=generator()))
    assert svm.objective(x, y, elsewhere, 1.0) == pytest.approx(svm.objective(x, y, weights, 1.0), rel=1e-5)
    single = svm.fit(x.float(), y, 4, 1.0)
    assert single.dtype == torch.float32
    assert svm.objective(x, y, single.double(), 1.0) == pytest.approx(svm.objective(x, y, weights, 1.0), rel=1e-5)


def test_the_cost_is_the_best_on_held_out_images_and_the_smaller_of_equals() -> None:
    x, y = mixture(240, 3, apart=0.4)
    parts = torch.split(x / x.std(dim=0) / x.shape[1] ** 0.5, [60, 180]), torch.split(y, [60, 180])
    train, held = (_Part(features, labels) for features, labels in zip(*parts, strict=True))
    cost, weights = tuned(train, held, 4)
    by_cost = [svm.accuracy(*held, svm.fit(*train, 4, c)) for c in COSTS]
    ends = next((k for k in range(2, len(COSTS)) if max(by_cost[k - 1 : k + 1]) <= max(by_cost[: k - 1])), len(COSTS) - 1)
    assert cost == COSTS[by_cost.index(max(by_cost[: ends + 1]))]
    assert svm.accuracy(*held, weights) == max(by_cost[: ends + 1])
    assert len(set(by_cost)) > 1
    plain = _Part(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]))
    assert tuned(plain, plain, 2)[0] == COSTS[0]


# ---- k-means


def test_kmeans_finds_clusters_that_lie_apart() -> None:
    centres = 20 * torch.randn(7, 5, generator=generator())
    labels = torch.arange(700) % 7
    points = centres[labels] + torch.randn(700, 5, generator=generator(1))
    found = kmeans.clustered(points, 7, generator(2))
    means = torch.stack([points[labels == k].mean(dim=0) for k in range(7)])
    nearest = torch.cdist(means, found).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(7))
    torch.testing.assert_close(found[nearest], means, rtol=1e-5, atol=1e-5)


def test_kmeans_begins_with_distinct_points_and_has_no_more_centroids_than_there_are() -> None:
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 5.0]]).repeat(40, 1)
    found = kmeans.spread(points, 10, generator())
    assert sorted(map(tuple, found.tolist())) == [(0.0, 1.0), (2.0, 3.0), (5.0, 5.0)]
    assert sorted(map(tuple, kmeans.clustered(points, 10, generator()).tolist())) == sorted(map(tuple, found.tolist()))


def test_kmeans_draws_far_points_in_proportion_to_their_squared_distance() -> None:
    """From 0, points 1 and 3 are drawn next in the ratio 1 : 9."""
    points = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = [tuple(kmeans.spread(points, 2, generator(seed)).flatten().tolist()) for seed in range(3000)]
    after_zero = [second for first, second in pairs if first == 0]
    share = after_zero.count(3.0) / len(after_zero)
    assert 0.0 not in after_zero and abs(share - 0.9) < 4 * (0.09 / len(after_zero)) ** 0.5  # four standard errors


@pytest.mark.parametrize("channels", [1, 3])
def test_kmeans_features_are_the_papers_formula_at_every_position(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 11, 11, channels), dtype=np.uint8)
    dictionary = kmeans.learn(images, torch.arange(4), 5, generator())
    found = dictionary.features(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    whitening, mean, centroids = (t.double().numpy() for t in (dictionary.whitening, dictionary.mean, dictionary.centroids))
    maps = np.empty((6, 6, 6, 5))
    for n in range(6):
        for y in range(6):
            for x in range(6):
                p = images[n, y : y + 6, x : x + 6].transpose(2, 0, 1).ravel().astype(float)
                z = ((p - p.mean()) / np.sqrt(p.var() + 10) - mean) @ whitening
                away = np.linalg.norm(z - centroids, axis=1)
                maps[n, y, x] = np.maximum(0, away.mean() - away)
    quadrants = [
        maps[:, rows, columns].mean(axis=(1, 2)) for rows in (slice(3), slice(3, 6)) for columns in (slice(3), slice(3, 6))
    ]
    expected = np.stack(quadrants, axis=2).reshape(6, -1)  # centroid by centroid, its four quadrants
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)  # distances by a float32 product of matrices


def test_whitened_patches_have_the_papers_covariance() -> None:
    """W = (S + 0.1)^(-1/2) for the covariance S of patches, here those of all positions of many images."""
    images = np.random.default_rng(1).normal(128, 40, (3000, 8, 8, 1)).clip(0, 255).astype(np.uint8)
    images[:, 1:] = images[:, 1:] // 2 + images[:, :-1] // 2  # rows that depend on each other
    dictionary = kmeans.learn(images, torch.arange(3000), 2, generator())
    windows = np.lib.stride_tricks.sliding_window_view(images[..., 0], (6, 6), axis=(1, 2)).reshape(-1, 36).astype(float)
    patches = (windows - windows.mean(axis=1, keepdims=True)) / np.sqrt(windows.var(axis=1, keepdims=True) + 10)
    whitening = dictionary.whitening.double().numpy()
    covariance = np.linalg.inv(whitening @ whitening) - 0.1 * np.eye(36)
    np.testing.assert_allclose(covariance, np.cov(patches.T), atol=0.05)  # 50,000 patches drawn of 27,000, on a scale of 1


def test_a_dictionary_repeats_and_takes_small_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), dtype=np.uint8)
    one, two = (by_kmeans(images, torch.arange(9), 3, generator(5), CPU) for _ in range(2))
    chunk = torch.from_numpy(images)
    assert one(chunk).shape == (9, 12)
    assert torch.equal(one(chunk), two(chunk))


# ---- the critic's layers


class Functional(nn.Module):
    """Activations as functions and as a module, one map overwritten after it was made, one smaller than the grid, no map last."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 4, 2, 1), nn.Conv2d(3, 4, 4, 4)
        self.act, self.head = nn.ELU(), nn.Linear(16, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        a = F.leaky_relu(self.one(x), 0.3)
        b = torch.nn.functional.elu(self.two(a))
        return [a, b, torch.relu(self.three(-b))]

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu_(self.one(x), 0.3)
        b = self.act(self.two(a))
        return torch.relu(self.head(torch.relu(self.three(b.neg_())).flatten(1)))


def test_every_activated_map_is_pooled_whatever_becomes_of_it() -> None:
    critic = Functional()
    x = torch.randn(3, 1, 16, 16, generator=generator())
    found = layer_features(critic, x)
    with torch.no_grad():
        expected = [F.max_pool2d(maps, maps.shape[2] // 4) if maps.shape[2] > 4 else maps for maps in critic.maps(x)]
    assert [tuple(maps.shape) for maps in found] == [(3, 2, 4, 4), (3, 3, 4, 4), (3, 4, 2, 2)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert critic.training


def test_a_fused_critics_layers_are_those_of_its_modules_one_by_one() -> None:
    """28 pixels: maps of 14 and 7, whose windows are those of adaptive pooling; batch norm by its running statistics."""
    recipe = recipes.get("dcgan", image_size=28, channels=1, width=6)
    critic = recipe.networks["D"]
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.rand(module.num_features, generator=generator())
    state = {name: tensor.clone() for name, tensor in critic.state_dict().items()}
    images = torch.randint(256, (5, 28, 28, 1), dtype=torch.uint8, generator=generator())
    found = by_critic(critic)(images)
    x, maps = images.permute(0, 3, 1, 2).float() / 127.5 - 1, []
    with torch.no_grad():
        for layer in critic.eval().trunk.children():
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                n = x.shape[2]
                edges = [(k * n // 4, -(-(k + 1) * n // 4)) for k in range(4)]
                windows = [x[:, :, a:b, c:d].amax(dim=(2, 3)) for a, b in edges for c, d in edges]
                maps.append(torch.stack(windows, dim=2).flatten(1))
    torch.testing.assert_close(found, torch.cat(maps, dim=1), rtol=1e-4, atol=1e-5)  # batch norm within a weight, and beside it
    assert found.shape == (5, (6 + 12) * 16)
    assert all(torch.equal(tensor, state[name]) for name, tensor in critic.state_dict().items())


def test_a_tanh_that_fuse_runs_as_an_op_is_seen_too() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Conv2d(5, 1, 8))
    images = torch.randn(2, 3, 12, 12)
    found, expected = layer_features(fuse(copy.deepcopy(plain)), images), layer_features(plain, images)
    assert [layer.shape[1] for layer in expected] == [4, 5]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # batch norm within a weight, and beside it


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("dcgan", {}, [4, 8, 16]),
        ("infogan", {}, [4, 8, 16]),
        ("wgan", {"architecture": "cnn"}, [4, 4, 8, 8, 16, 16, 32]),
        ("sngan", {"architecture": "resnet"}, [4] * 8),
        ("wgan-gp", {"architecture": "resnet", "norm": "layer"}, [4] * 8),
        ("cyclegan", {"network": "D_B"}, [4, 8, 16]),
    ],
)
def test_layers_of_every_kind_of_critic(name: str, options: dict[str, Any], channels: list[int]) -> None:
    chosen = {"image_size": 32, "channels": 3, "width": 4, **options}
    network = chosen.pop("network", None)
    recipe = recipes.get(name, **chosen)
    critic = recipe.networks[critic_of(recipe, recipe.networks, network)]
    found = layer_features(critic, torch.randn(2, 3, 32, 32, generator=generator()))
    assert [tuple(maps.shape) for maps in found] == [(2, count, 4, 4) for count in channels]
    assert all(maps.isfinite().all() and maps.std() > 0 for maps in found)


@pytest.mark.parametrize(
    ("name", "network", "said"),
    [
        ("gan", None, "a critic made of 2-D convolutions, and 'gan' has none; its networks are G, D"),
        ("cyclegan", None, "'cyclegan' has several: D_A, D_B"),
        ("cyclegan", "D_C", "recipe 'cyclegan' has no critic 'D_C'; did you mean"),
        ("dcgan", "G", "recipe 'dcgan' has no critic 'G'; known: D"),
        ("cgan", None, "'D' of recipe 'cgan' takes x, y, so its features would tell the class"),
    ],
)
def test_a_critic_that_cannot_be_used_is_refused(name: str, network: str | None, said: str) -> None:
    recipe = recipes.get(name, image_size=32, channels=1, width=4, classes=3)
    with pytest.raises(InvalidValue, match=said):
        critic_of(recipe, recipe.networks, network)


def test_a_critic_without_known_activations_is_refused() -> None:
    with pytest.raises(InvalidValue, match="activations of maps, and Conv2d has none"):
        layer_features(nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 8, 8))


# ---- splits


def uneven() -> Tensor:
    return torch.cat([torch.full((n,), k) for k, n in enumerate((300, 90, 30))])[torch.randperm(420, generator=generator())]


def test_a_split_uses_every_row_once_in_the_datas_proportions() -> None:
    labels = uneven()
    parts = split(labels, None, train=None, test=None, seed=3)
    assert torch.cat(list(parts)).sort().values.tolist() == list(range(420))
    assert [len(rows) for rows in parts] == [269, 67, 84]
    for rows in parts:
        share = labels[rows].bincount(minlength=3) / len(rows)
        assert (share - torch.tensor([300, 90, 30]) / 420).abs().max() <= 1.5 / len(rows)  # each count is rounded, twice at most
    again, other = (split(labels, None, train=None, test=None, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not torch.equal(parts.test, other.test)


def test_every_start_of_the_rows_to_fit_holds_classes_alike() -> None:
    labels = uneven()
    train = labels[split(labels, None, train=None, test=None, seed=0).train]
    for count in (3, 10, 45):
        counts = train[:count].bincount(minlength=3)
        assert counts.max() - counts.min() <= 1
    first, second = draws(train, 10, 2, seed=0)
    assert sorted(train[first].bincount().tolist()) == sorted(train[second].bincount().tolist()) == [3, 3, 4]
    assert not torch.equal(first, second)
    assert len(first.unique()) == 10


def test_a_test_set_of_its_own_is_tested() -> None:
    parts = split(uneven(), torch.arange(60) % 3, train=100, test=30, seed=0)
    assert [len(rows) for rows in parts] == [80, 20, 30] and parts.test.max() < 60
    assert (torch.arange(60) % 3)[parts.test].bincount().tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"test": 420}, InvalidValue, "test: expected from 1 to 419 of 420 images, got 420"),
        ({"train": 337, "test": 84}, InvalidValue, "train: expected from 2 to 336 images, those that are not tested, got 337"),
        ({"test": 61, "test_labels": torch.zeros(60, dtype=torch.int64)}, InvalidValue, "test: expected from 1 to 60"),
        ({"labels": torch.zeros(50, dtype=torch.int64)}, InvalidData, "at least two classes to tell apart, got those of one"),
        ({"labels": torch.tensor([1] * 20 + [2] * 20 + [0])}, InvalidData, r"class 0 \(shoe\) has 1 images to fit and 0 to test"),
        ({"test_labels": torch.tensor([0, 1, 2, 3])}, InvalidData, "class 3 has 0 images to fit and 1 to test"),
    ],
)
def test_splits_that_do_not_fit_are_refused(given: dict[str, Any], error: type[Exception], said: str) -> None:
    arguments: dict[str, Any] = {"labels": uneven(), "test_labels": None, "train": None, "test": None, "seed": 0, **given}
    with pytest.raises(error, match=said):
        split(names=("shoe",), **arguments)


# ---- standardising


def test_features_are_standardised_by_the_first_part_alone() -> None:
    first = torch.randn(5000, 3, generator=generator()) * torch.tensor([1.0, 10.0, 100.0]) + torch.tensor([5.0, -3.0, 1000.0])
    other = torch.randn(40, 3, generator=generator(1)) * 7
    a, b = first.clone(), other.clone()
    standardise([a, b], "x")
    assert a.mean(dim=0).abs().max() < 1e-5
    variance = first.double().var(dim=0, correction=0)
    scale = 1 / (variance + 0.01 * variance.mean()).sqrt() / 3**0.5
    expected = (other.double() - first.double().mean(dim=0)) * scale
    torch.testing.assert_close(b.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.full((9000, 2), 0.1), "critic: all 9000 images have the same features"),
        (torch.zeros(5, 4), "critic: all 5 images have the same features"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 2.0]]), "critic: features holds 1 values that are NaN"),
    ],
)
def test_features_that_tell_nothing_are_refused(features: Tensor, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        standardise([features], "critic")


def test_a_feature_that_never_varies_stays_zero() -> None:
    features = torch.stack([torch.full((100,), 0.1), torch.arange(100.0)], dim=1)
    later = torch.tensor([[0.1, 3.0]])
    standardise([features, later], "x")
    assert features[:, 0].abs().max() < 1e-6 and later[0, 0].abs() < 1e-6 and features[:, 1].std() > 0.5


def test_extraction_goes_by_rows_in_their_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    rows = torch.randperm(300, generator=generator())
    (found,) = extract(pixels, [(images, rows)], CPU)
    assert torch.equal(found, torch.from_numpy(images[rows.numpy()].reshape(300, 16)).float())


# ---- the whole


def squares(n: int, seed: int, size: int = 16) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise with a bright square in one of three corners, which is the class."""
    draw = np.random.default_rng(seed)
    images, labels = draw.integers(0, 120, (n, size, size, 1), dtype=np.uint8), np.arange(n) % 3
    for image, label in zip(images, labels, strict=True):
        top, left = ((0, 0), (0, size // 2), (size // 2, 0))[label]
        image[top : top + size // 2, left : left + size // 2] += 100
    return images, labels


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations on labelled squares, their file beside it, and others to test."""
    folder = tmp_path_factory.mktemp("represented")
    for name, seed in (("squares", 0), ("others", 1)):
        images, labels = squares(240, seed)
        np.savez(folder / f"{name}.npz", images=images, labels=labels)
    trainer = ganfast.Trainer("dcgan", folder / "squares.npz", out=folder / "run", width=4, batch=8)
    for _ in range(2):
        trainer.step()
    trainer.save()
    return folder / "run"


def test_plain_classes_are_told_apart_by_every_representation(run: Path) -> None:
    result = represent(
        run, run.parent / "squares.npz", test_data=run.parent / "others.npz", counts=[6, 30], centroids=4, repeats=2
    )
    rows = {(row.representation, row.count): row for row in result.rows}
    names = ["pixels", "k-means", "untrained critic", "critic"]
    assert list(dict.fromkeys(row.representation for row in result.rows)) == names
    assert [rows[name, 192].dims for name in names] == [256, 16, 192, 192]  # critic: 4 and 8 maps of 4 x 4
    assert all(rows[name, 192].accuracy == 1 and rows[name, 192].deviation is None for name in names)
    assert all(rows[name, 6].draws == 2 and rows[name, 6].deviation is not None for name in names)
    told = result.manifest
    assert told["images"] == {"train": 192, "validation": 48, "test": 240} and told["classes"] == 3
    assert told["layers"] == [[4, 4, 4], [8, 4, 4]] and told["step"] == 2 and not told["critic_saw_test_images"]
    json.dumps(result.json, allow_nan=False)


def test_labels_that_mean_nothing_are_guessed(run: Path) -> None:
    images, _ = squares(240, 2)
    labels = np.random.default_rng(3).permutation(np.arange(240) % 3)
    result = represent(run, (images, labels), test=120, counts=[], centroids=4)
    error = (2 / 9 / 120) ** 0.5
    assert all(abs(row.accuracy - 1 / 3) < 4 * error for row in result.rows)


def test_a_seed_repeats_everything(run: Path) -> None:
    images, labels = squares(120, 4)
    labels[::4] = np.random.default_rng(0).integers(0, 3, 30)
    arguments: dict[str, Any] = {"counts": [9], "centroids": 4, "repeats": 2}
    one = represent(run, (images, labels), seed=1, **arguments)
    assert represent(run, (images, labels), seed=1, **arguments).json == one.json
    assert represent(run, (images, labels), seed=2, **arguments).rows != one.rows


def test_a_dictionary_is_learned_from_the_rows_given_alone() -> None:
    images, _ = squares(40, 5)
    changed = images.copy()
    changed[20:] = 255 - changed[20:]
    chunk = torch.from_numpy(images[:5])
    first, second = (by_kmeans(some, torch.arange(20), 3, generator(), CPU)(chunk) for some in (images, changed))
    assert torch.equal(first, second)


def test_the_dictionary_is_learned_from_the_images_to_fit(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = squares(60, 8)
    seen = []

    def learned(some: NDArray[np.uint8], rows: Tensor, *rest: Any) -> Any:
        seen.append(rows)
        return by_kmeans(some, rows, *rest)

    monkeypatch.setattr(protocol, "by_kmeans", learned)
    represent(run, (images, labels), counts=[], centroids=2, seed=3)
    expected = split(torch.from_numpy(labels), None, train=None, test=None, seed=3).train
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_the_untrained_critic_is_the_one_that_training_began_with(run: Path) -> None:
    data = squares(60, 6)
    fresh = ganfast.Trainer("dcgan", run.parent / "squares.npz", width=4, batch=8)
    opened = open_dataset(data)
    (before,) = extract(by_critic(fresh.networks.D), [(opened.groups["real"]["real"], torch.arange(60))], CPU)
    trained = ganfast.Trainer.resume(run, training=False)
    (again,) = extract(by_critic(_untrained(trained, "D")), [(opened.groups["real"]["real"], torch.arange(60))], CPU)
    (after,) = extract(by_critic(trained.networks.D), [(opened.groups["real"]["real"], torch.arange(60))], CPU)
    assert torch.equal(before, again) and not torch.allclose(after, again)


def test_data_that_cannot_be_used_are_refused(run: Path, tmp_path: Path) -> None:
    images, labels = squares(60, 7)
    with pytest.raises(InvalidData, match="has real: expected images with labels"):
        represent(run, images)
    with pytest.raises(InvalidValue, match="counts: expected from 3, one for each class, to 39 images to fit, got 2"):
        represent(run, (images, labels), counts=[2])
    with pytest.raises(InvalidValue, match="pixels: all 39 images have the same features"):
        represent(run, (np.zeros_like(images), labels))
    with pytest.raises(InvalidValue, match="repeats: expected at least 1, got 0"):
        represent(run, (images, labels), repeats=0)
    points = ganfast.Trainer("gan", "toy:ring8", out=tmp_path / "points", width=4, batch=4)
    points.save()
    with pytest.raises(InvalidValue, match="and 'gan' has none"):
        represent(tmp_path / "points", (images, labels))


# ---- the command


@pytest.fixture
def command(command: Command) -> Command:
    """``ganfast represent ARGUMENTS``."""
    return functools.partial(command, "represent")


def test_the_command_shows_a_table_and_leaves_figures_and_a_picture(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "new" / "folder"
    data = run.parent / "squares.npz"
    code, shown, said = command(
        run, "--data", data, "--counts", "6,30", "--repeats", 2, "--centroids", 4, "--test", 60, "--out", out
    )
    assert (code, said) == (0, "")
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert {"pixels", "k-means", "untrained critic", "critic"} <= lines.keys()
    assert "100.0" in lines["pixels"] and "6 labels" in shown and "144 labels" in shown
    assert "60 test images of squares.npz" in shown and "iteration 2" in shown
    assert "the critic was trained on the test images too" in shown
    figures = json.loads((out / "representation.json").read_text())
    assert len(figures["rows"]) == 12 and figures["manifest"]["critic_saw_test_images"]
    with Image.open(out / "representation.png") as picture:
        picture.verify()


def test_the_command_refuses_in_one_line_and_leaves_nothing(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    data = run.parent / "squares.npz"
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ((run, "--data", data, "--counts", "6,many"), "--counts: expected whole numbers with commas between them, got '6,many'"),
        ((run, "--data", "toy:ring8"), "toy:ring8 holds points"),
        ((run, "--data", data, "--out", tmp_path / "file" / "x"), "is no folder"),
        ((tmp_path, "--data", data), "config.json"),
    ):
        assert said in refused(*arguments)
