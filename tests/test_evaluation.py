"""Scores of two sides: the same numbers as the metrics by themselves and as the field's tools, and what is told beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import ganfast
from ganfast.data import Dataset, open_dataset
from ganfast.engine import loop
from ganfast.engine.runfolder import RunFolder
from ganfast.errors import InvalidData, InvalidValue
from ganfast.evaluation import measures
from ganfast.evaluation.compared import ImageSet, of_dataset, of_file
from ganfast.evaluation.evaluate import evaluate
from ganfast.evaluation.features import Side, extracted, of_features
from ganfast.evaluation.measures import Choices
from ganfast.evaluation.references import side_of
from ganfast.metrics import FeatureStatistics, frechet_distance_from_features
from ganfast.metrics.feature_network import FeatureNetwork, Outputs
from ganfast.metrics.inception_score import inception_score
from ganfast.metrics.kernel_distance import kernel_distance
from ganfast.metrics.networks import network
from ganfast.metrics.prdc import precision_recall_density_coverage
from ganfast.metrics.protocols import PROTOCOLS, Protocol

SMALL = Choices(splits=3, subsets=5, subset_size=20, k=3)
Images = NDArray[np.uint8]


class Flat(nn.Module):
    """Pixels as features, and the first four as logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        flat = images.flatten(1)
        return flat, flat[:, :4]


def pictures(n: int, seed: int, size: int = 4) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 1), dtype=np.uint8)


def data(n: int, seed: int, name: str = "made") -> Dataset:
    return Dataset(name, {"real": {"real": pictures(n, seed)}})


def flat(images: Images) -> Tensor:
    return torch.from_numpy(images).flatten(1) / 255


def scores(*sides: Any, metrics: str = "fid,kid,is,prdc,fid-infinity", **options: Any) -> dict[str, float]:
    return evaluate(*sides, metrics=metrics, network=Flat().eval(), **({"choices": SMALL} | options)).values


# ---- the numbers


def test_scores_are_those_of_the_metrics_by_themselves() -> None:
    fake, real = pictures(60, 1), pictures(90, 2)
    found = scores(fake, real)
    x, y = flat(fake), flat(real)
    assert found["FD[Flat]"] == pytest.approx(frechet_distance_from_features(x, y), rel=1e-12)
    assert (found["KD[Flat]"], found["KD[Flat] std"]) == kernel_distance(x, y, subsets=5, subset_size=20)
    assert (found["IS[Flat]"], found["IS[Flat] std"]) == inception_score(x[:, :4], splits=3)
    for name, value in precision_recall_density_coverage(y, x, k=3).items():
        assert found[f"{name}[Flat]"] == value
    assert next(iter(found)) == "FD[Flat]" and len(found) == 10


def test_identical_sides_score_zero_and_one() -> None:
    images = pictures(60, 1)
    found = scores(images, images)
    # rounding of a sum of 16 variances of about 1/12
    assert found["FD[Flat]"] == pytest.approx(0, abs=1e-12)
    assert [found[f"{name}[Flat]"] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_scores_do_not_depend_on_how_many_images_are_read_at_a_time() -> None:
    fake, real = data(70, 1), data(90, 2)
    assert scores(fake, real, batch=7) == scores(fake, real, batch=64) == scores(fake, real)


def test_a_part_of_the_images_is_drawn_by_the_seed() -> None:
    fake, real = data(70, 1), data(90, 2)
    one, again, other = (scores(fake, real, n=30, n_real=40, metrics="fid", seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    chosen = np.concatenate(list(of_dataset(real, 40, seed=1).chunks()))
    assert len(np.unique(chosen.reshape(40, -1), axis=0)) == 40
    drawn = np.concatenate(list(of_dataset(fake, 30, seed=1).chunks()))
    assert other["FD[Flat]"] == pytest.approx(frechet_distance_from_features(flat(drawn), flat(chosen)), rel=1e-12)


def test_an_inception_score_needs_no_other_side() -> None:
    result = evaluate(pictures(60, 1), metrics="is", network=Flat().eval(), choices=SMALL)
    assert list(result.values) == ["IS[Flat]", "IS[Flat] std"] and result.manifest["real"] is None


def test_a_protocol_says_how_many_images_each_metric_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distance is of the first 30 samples against 40, the score of all 50."""
    rule = Protocol("small", "tf-compat", "test", n_real=40, n_fake=30, n_score=50, splits=5, subsets=3, subset_size=10)
    monkeypatch.setitem(PROTOCOLS, "small", rule)
    fake, real = data(60, 1), data(90, 2)
    result = evaluate(fake, real, metrics="fid,is,kid", network=Flat().eval(), protocol="small")
    x, y = (flat(np.concatenate(list(of_dataset(side, n).chunks()))) for side, n in ((fake, 50), (real, 40)))
    assert result.values["FD[Flat]"] == pytest.approx(frechet_distance_from_features(x[:30], y), rel=1e-12)
    assert result.values["IS[Flat]"] == inception_score(x[:, :4], splits=5)[0]
    assert result.values["KD[Flat]"] == kernel_distance(x[:30], y, subsets=3, subset_size=10)[0]
    told = result.manifest
    assert (told["protocol"], told["fake"]["n"], told["real"]["n"]) == ("small", 30, 40)
    assert told["metrics"] == {
        "fid": {"n": 30},
        "is": {"n": 50, "splits": 5, "seed": 2020},
        "kid": {"n": 30, "subsets": 3, "subset_size": 10, "seed": 2020},
    }
    for given in ({"n": 10}, {"n_real": 10}, {"preset": "clean"}, {"choices": SMALL}):
        with pytest.raises(InvalidValue, match=f"{next(iter(given))}: protocol 'small'"):
            evaluate(fake, real, network=Flat().eval(), protocol="small", **given)
    with pytest.raises(InvalidValue, match="no protocol is called 'smal'; did you mean 'small'"):
        evaluate(fake, real, network=Flat().eval(), protocol="smal")
    with pytest.raises(InvalidValue, match="made has 20 images, and 30 were asked for"):
        evaluate(data(20, 1), real, network=Flat().eval(), protocol="small")


# ---- what is refused


def test_metrics_are_known_by_name() -> None:
    assert list(measures.named("kid, fid")) == ["kid", "fid"]
    with pytest.raises(InvalidValue, match="no metric is called 'fdi'; did you mean 'fid'"):
        measures.named("fdi")
    with pytest.raises(InvalidValue, match="expected some of fid"):
        measures.named(" , ")


@pytest.mark.parametrize(
    ("metric", "n", "words"),
    [
        ("fid", 1, "fid needs at least 2 fake samples, got 1"),
        ("kid", 19, "kid needs at least 20 fake samples, got 19.*--subset-size"),
        ("is", 2, "is needs at least 3 fake samples, got 2.*--splits"),
        ("prdc", 3, "prdc needs at least 4 fake samples, got 3"),
        ("fid-infinity", 19, "fid-infinity needs at least 20 fake samples, got 19"),
    ],
)
def test_too_few_samples_are_refused_before_any_is_looked_at(metric: str, n: int, words: str) -> None:
    def never(*_: Any) -> Any:
        pytest.fail("images were read")

    with pytest.raises(InvalidValue, match=words):
        scores(pictures(n, 1), pictures(90, 2), metrics=metric, watch=never)
    least = scores(pictures(n + 1, 1), pictures(90, 2), metrics=metric)
    assert all(np.isfinite(value) for value in least.values())


def test_the_least_of_the_real_side_too() -> None:
    with pytest.raises(InvalidValue, match="kid needs at least 20 real samples, got 19"):
        scores(pictures(60, 1), pictures(19, 2), metrics="kid")


def test_what_has_no_images_or_two_sides_is_named() -> None:
    with pytest.raises(InvalidValue, match="toy:ring8 holds points"):
        scores("toy:ring8", pictures(60, 2))
    pair = Dataset("pair", {"a": {"a": pictures(9, 1)}, "b": {"b": pictures(9, 2)}})
    with pytest.raises(InvalidValue, match="pair holds the sides a, b of a pair: give the folder of one of them"):
        scores(pair, pictures(60, 2))
    with pytest.raises(InvalidValue, match="against: fid of array needs real images"):
        scores(pictures(60, 1), metrics="fid")


def test_a_network_without_logits_has_no_inception_score() -> None:
    with pytest.raises(InvalidValue, match="Flatten has no logits"):
        evaluate(pictures(60, 1), metrics="is", network=nn.Flatten().eval(), choices=SMALL)


# ---- files of features


def test_features_and_statistics_may_come_from_files(tmp_path: Path) -> None:
    fake, real = pictures(60, 1), pictures(90, 2)
    straight = scores(fake, real, metrics="fid,kid,prdc")
    for name in ("features", "feats"):  # clean-fid's name
        np.savez(tmp_path / f"{name}.npz", **{name: flat(real).numpy()})
        assert scores(fake, tmp_path / f"{name}.npz", metrics="fid,kid,prdc") == straight
    np.savez(tmp_path / "fake.npz", features=flat(fake).numpy())
    assert scores(tmp_path / "fake.npz", tmp_path / "feats.npz", metrics="fid,kid,prdc") == straight
    result = evaluate(real, metrics="", network=Flat().eval(), save_statistics=tmp_path / "real-statistics.npz")
    assert result.values == {}
    (value,) = scores(fake, tmp_path / "real-statistics.npz", metrics="fid").values()
    assert value == pytest.approx(straight["FD[Flat]"], rel=1e-12)
    told = evaluate(fake, tmp_path / "feats.npz", network=Flat().eval()).manifest["real"]
    assert told == {"name": "feats.npz", "file": str(tmp_path / "feats.npz"), "n": 90}


def test_what_a_file_does_not_hold_is_named(tmp_path: Path) -> None:
    of_features(flat(pictures(60, 1)), {}).statistics.save(tmp_path / "s.npz")  # type: ignore[union-attr]
    with pytest.raises(InvalidValue, match=r"kid needs features, and s\.npz holds statistics alone: give the images"):
        scores(pictures(60, 1), tmp_path / "s.npz", metrics="fid,kid")
    with pytest.raises(InvalidValue, match=r"s\.npz holds no images to take 9 of"):
        scores(pictures(60, 1), tmp_path / "s.npz", metrics="fid", n_real=9)
    with pytest.raises(InvalidValue, match=r"array has 16 features an image and s\.npz has 5: they are of different networks"):
        of_features(torch.rand(9, 5), {}).statistics.save(tmp_path / "s.npz")  # type: ignore[union-attr]
        scores(pictures(60, 1), tmp_path / "s.npz", metrics="fid")


def test_features_of_files_do_not_get_the_name_of_a_network_that_cannot_have_made_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", features=flat(pictures(60, 1)).numpy())
    with pytest.raises(InvalidValue, match=r"a\.npz has 16 features an image and fashion-cnn makes 128"):
        evaluate(tmp_path / "a.npz", tmp_path / "b.npz", network="fashion-cnn")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"features": np.full((5, 3), np.nan, np.float32)}, "15 values that are NaN or Inf"),
        ({"features": np.zeros(5, np.float32)}, r"expected features \(N, D\)"),
        ({"features": np.array(["a"])}, "real numbers"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "NaN"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, "expected"),
    ],
)
def test_files_whose_numbers_are_none_are_refused(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InvalidData, match=rf"x\.npz.*{words}"):
        of_file(tmp_path / "x.npz")


def test_other_files_are_left_to_the_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=pictures(9, 1))
    assert of_file(tmp_path / "images.npz") is None and of_file(tmp_path) is None and of_file(tmp_path / "absent.npz") is None
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(InvalidData, match=r"broken\.npz cannot be read as npz"):
        of_file(tmp_path / "broken.npz")


def test_statistics_are_exchanged_with_pytorch_fid_and_clean_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs read ours and ours read theirs, by their own functions; the distances are the same."""
    from peers import cleanfid, pytorch_fid

    fake, real = pictures(200, 1), pictures(300, 2)
    evaluate(real, metrics="", network=Flat().eval(), save_statistics=tmp_path / "ours.npz")
    mu, sigma = pytorch_fid.fid_score.compute_statistics_of_path(str(tmp_path / "ours.npz"), None, 1, 16, "cpu")
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "mine_clean_custom_na.npz").write_bytes((tmp_path / "ours.npz").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(cleanfid, "__file__", str(tmp_path / "__init__.py"))  # the folder of statistics is beside it
        clean = cleanfid.features.get_reference_statistics("mine", "na", mode="clean", split="custom", metric="FID")
    assert np.array_equal(clean[0], mu) and np.array_equal(clean[1], sigma)
    x, y = (flat(images).double().numpy() for images in (fake, real))
    np.testing.assert_allclose(sigma, np.cov(y, rowvar=False), rtol=0, atol=1e-15)  # numbers of about 1/12
    theirs = x.mean(axis=0), np.cov(x, rowvar=False)
    (value,) = scores(fake, tmp_path / "ours.npz", metrics="fid").values()
    # scipy's square root of the product of two covariances loses half of the digits of its smallest eigenvalues
    assert value == pytest.approx(cleanfid.fid.frechet_distance(*theirs, mu, sigma), rel=1e-6)

    class NoNetwork(nn.Module):
        BLOCK_INDEX_BY_DIM = {2048: 3}  # noqa: RUF012

        def __init__(self, blocks: list[int]) -> None:
            super().__init__()

    np.savez(tmp_path / "x.npz", mu=theirs[0], sigma=theirs[1])
    monkeypatch.setattr(pytorch_fid.fid_score, "InceptionV3", NoNetwork)
    pytorch_fid.fid_score.save_fid_stats([str(tmp_path / "x.npz"), str(tmp_path / "theirs.npz")], 1, "cpu", 2048)
    result = evaluate(tmp_path / "theirs.npz", tmp_path / "ours.npz", network=Flat().eval())
    assert result.values["FD[Flat]"] == pytest.approx(value, rel=1e-12) and result.manifest["fake"]["n"] is None


# ---- references


class Counting:
    """A feature network that counts the images it was shown."""

    def __init__(self, **facts: Any) -> None:
        self.shown = 0

        def compute(images: Tensor) -> Outputs:
            self.shown += len(images)
            flat = images.flatten(1).float()
            return Outputs(flat, flat[:, :4])

        self.network = FeatureNetwork("counting", compute, torch.device("cpu"), 16, facts)


NEEDS = frozenset({"statistics", "features"})


def test_the_features_of_real_images_are_made_once(tmp_path: Path) -> None:
    images = of_dataset(data(90, 2))
    counting = Counting()
    first = side_of(images, counting.network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    again = side_of(images, counting.network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    assert counting.shown == 90 and first.features is not None and again.features is not None
    assert torch.equal(first.features, again.features) and first.statistics is not None and again.statistics is not None
    assert torch.equal(first.statistics.covariance, again.statistics.covariance) and first.n == again.n == 90
    assert torch.equal(again.features, torch.from_numpy(pictures(90, 2)).flatten(1).float())
    expected = FeatureStatistics()
    expected.update(again.features)
    # the covariance was multiplied by n - 1 and divided again
    torch.testing.assert_close(again.statistics.covariance, expected.covariance, rtol=1e-14, atol=0)
    side_of(images, counting.network, frozenset({"logits"}), folder=tmp_path)
    assert counting.shown == 180
    assert {place.suffix for place in (tmp_path / "references").iterdir()} == {".npz"}


@pytest.mark.parametrize(
    "other",
    [
        lambda: (of_dataset(data(90, 3)), Counting()),
        lambda: (of_dataset(data(90, 2), 50), Counting()),
        lambda: (of_dataset(data(90, 2), 90, seed=1), Counting()),
        lambda: (of_dataset(data(90, 2)), Counting(preset="clean")),
        lambda: (of_dataset(data(90, 2)), Counting(weights_sha256="1")),
    ],
    ids=["data", "number", "seed", "preset", "weights"],
)
def test_other_images_or_networks_have_other_features(tmp_path: Path, other: Callable[[], tuple[ImageSet, Counting]]) -> None:
    side_of(of_dataset(data(90, 2)), Counting().network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    images, counting = other()
    side_of(images, counting.network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    assert counting.shown == images.n


def test_the_same_data_by_another_name_and_version_have_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side_of(of_dataset(data(90, 2, "one")), Counting().network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(np, "__version__", "0")
    counting = Counting()
    kept = side_of(of_dataset(data(90, 2, "two")), counting.network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    assert counting.shown == 0 and kept.told["name"] == "two"


def test_damaged_features_are_made_again(tmp_path: Path) -> None:
    images = of_dataset(data(90, 2))
    first = side_of(images, Counting().network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
    for place in sorted((tmp_path / "references").iterdir()):
        whole = bytearray(place.read_bytes())
        whole[len(whole) // 2] ^= 1
        place.write_bytes(whole)
        counting = Counting()
        with pytest.warns(UserWarning, match=f"{place.name} is damaged and will be made again"):
            again = side_of(images, counting.network, NEEDS, folder=tmp_path)  # type: ignore[arg-type]
        assert counting.shown == 90 and again.features is not None and first.features is not None
        assert torch.equal(again.features, first.features)


@pytest.mark.parametrize("wrong", ["fewer", "flat", "not finite"])
def test_features_that_are_not_those_of_the_images_are_made_again(wrong: str, tmp_path: Path) -> None:
    """A file that reads well and holds something else must not stand for the images, nor in the way for good."""
    images, needs = of_dataset(data(90, 2)), frozenset({"features"})
    right = side_of(images, Counting().network, needs, folder=tmp_path)  # type: ignore[arg-type]
    (place,) = (tmp_path / "references").iterdir()
    assert right.features is not None
    features = right.features.numpy().copy()
    if wrong == "fewer":
        features = features[:-1]
    elif wrong == "flat":
        features = features.reshape(-1)
    else:
        features[-1, -1] = np.nan
    np.savez(place, features=features)
    with pytest.warns(UserWarning, match="is damaged and will be made again: expected"):
        again = side_of(images, Counting().network, needs, folder=tmp_path)  # type: ignore[arg-type]
    assert again.features is not None and torch.equal(again.features, right.features)


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.warns(UserWarning, match="the features of made are not kept"):
        side = side_of(of_dataset(data(90, 2)), Counting().network, NEEDS, folder=tmp_path / "file")  # type: ignore[arg-type]
    assert side.n == 90 and side.features is not None


def test_a_module_of_ones_own_is_not_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two of one name, with the same weights (none), may do different things."""
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path))
    scores(data(60, 1), data(90, 2), metrics="fid")
    assert not (tmp_path / "references").exists()
    evaluate(data(60, 1), data(90, 2), network="fashion-cnn")
    assert (tmp_path / "references").exists()


def test_statistics_alone_keep_no_features() -> None:
    side = extracted(Counting().network, iter([pictures(9, 1)]), frozenset({"statistics"}), {})
    assert side.has == {"statistics"} and side.width == 16
    assert Side({}, 3).width == 0


# ---- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was scored: 6 iterations on 60 pictures, from a file."""
    folder = tmp_path_factory.mktemp("scored")
    np.savez(folder / "data.npz", images=pictures(60, 5, 16))
    options: dict[str, Any] = {"width": 4, "batch": 4, "eval_metrics": "prdc,fid,is", "eval_every_kimg": 0.012, "eval_n": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda run: run)
        ganfast.train("dcgan", folder / "data.npz", steps=6, out=folder / "run", **options)
    yield folder / "run"


def test_scores_in_training_are_those_of_its_checkpoints(run: Path) -> None:
    rows = RunFolder(run).evaluations()
    assert [row["step"] for row in rows] == [3, 6]
    for row in rows:
        if (place := run / "checkpoints" / f"step-{row['step']:08d}").exists():
            result = evaluate(place, metrics="prdc,fid,is", network="fashion-cnn", n=40)
            assert result.values == {key.removeprefix("metric/"): value for key, value in row.items() if key[:7] == "metric/"}
            assert result.manifest["fake"]["step"] == row["step"]
            assert result.manifest["metrics"] == row["manifest"]["metrics"]
            assert result.manifest["real"] == row["manifest"]["real"]
    assert rows[0]["best_by"] == "coverage[fashion-cnn]" and rows[0]["less_is_better"] is False


def test_the_manifest_tells_all_that_a_score_follows_from(run: Path) -> None:
    told = evaluate(run, metrics="fid", network="fashion-cnn", n=40, seed=3).manifest
    opened = open_dataset(run.parent / "data.npz")
    assert told["fake"] == {"name": "dcgan", "run": str(run), "step": 6, "data": opened.digest, "seed": 3, "n": 40}
    assert told["real"] == {"name": "data.npz", "digest": opened.digest, "of": 60, "image_size": 16, "n": 60}
    assert told["network"] == network("fashion-cnn").manifest() and "versions" in told["network"]
    assert json.loads(json.dumps(told)) == told


def test_data_against_a_run_are_opened_as_its_own(run: Path, tmp_path: Path) -> None:
    """Larger pictures, in colour, become what the run was trained on; asked for otherwise, they do not."""
    large = np.repeat(pictures(60, 5, 16).repeat(2, axis=1).repeat(2, axis=2), 3, axis=3)
    np.savez(tmp_path / "large.npz", images=large)
    told = evaluate(run, tmp_path / "large.npz", network="fashion-cnn", n=40).manifest["real"]
    assert told["image_size"] == 16
    assert evaluate(run, tmp_path / "large.npz", network="fashion-cnn", n=40, image_size=32).manifest["real"]["image_size"] == 32


def test_a_run_of_points_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda run: run)
    monkeypatch.setattr(loop, "picture", lambda trainer: None)
    monkeypatch.setattr(RunFolder, "save_sample", lambda *_: None)
    ganfast.train("gan", "toy:ring8", steps=1, out=tmp_path / "run", width=4, batch=4)
    with pytest.raises(InvalidValue, match=r"the run in .* makes points, and scores are of images"):
        evaluate(tmp_path / "run", network="fashion-cnn")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eval_metrics": "fdi"}, "no metric is called 'fdi'"),
        ({"eval_metrics": "kid", "eval_n": 999}, "kid needs at least 1000 fake samples, got 999"),
        ({"eval_metrics": "kid"}, "kid needs at least 1000 real samples, got 60"),
        ({"eval_every_kimg": 1.0, "eval_network": "fashion"}, "no feature network is called 'fashion'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_written(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        ganfast.Trainer("dcgan", pictures(60, 5, 16), out=tmp_path / "run", width=4, **options)
    assert not (tmp_path / "run").exists()


def test_runs_that_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="eval_metrics: scores are written to the run's folder: give it out="):
        ganfast.Trainer("dcgan", pictures(60, 5, 16), width=4, eval_metrics="fid")
    with pytest.raises(InvalidValue, match="toy:ring8 holds points"):
        ganfast.Trainer("gan", "toy:ring8", out=tmp_path / "run", eval_metrics="fid")
    pair = Dataset("pair", {"a": {"a": pictures(9, 1, 16)}, "b": {"b": pictures(9, 2, 16)}})
    with pytest.raises(InvalidValue, match="recipe 'cyclegan' makes its samples from the data"):
        ganfast.Trainer("cyclegan", pair, out=tmp_path / "run", width=4, eval_metrics="fid")


def test_the_best_checkpoint_can_be_opened_by_its_name(run: Path) -> None:
    best = ganfast.Trainer.resume(run / "checkpoints" / "best", training=False)
    assert best.steps == best.best_step and best.sample(2).shape == (2, 16, 16, 1)


def test_a_run_that_goes_on_may_be_scored_otherwise(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(loop, "write_report", lambda run: run)
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    resumed = ganfast.Trainer.resume(tmp_path / "run", eval_metrics="fid", eval_every_kimg=0.004)
    resumed.run(2)
    rows = RunFolder(tmp_path / "run").evaluations()
    assert [(row["step"], row["best_by"]) for row in rows[2:]] == [(7, "FD[fashion-cnn]"), (8, "FD[fashion-cnn]")]
