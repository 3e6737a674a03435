from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import random_weights
import torch
from torch import Tensor, nn

from ganfast.errors import Damaged, InvalidData, InvalidType, InvalidValue, NotFound
from ganfast.metrics import fashion, inception, weight_files
from ganfast.metrics.feature_network import FeatureNetwork, Outputs, digest, whole_float32
from ganfast.metrics.networks import NAMES, network
from ganfast.metrics.weight_files import INCEPTION_2015, Published, fetched, fill, load


class Averages(nn.Module):
    """Features that can be told by hand: the mean of each channel, and of each row's first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.scale * images.mean((2, 3)), images[:, :1, :, 0].mean(2)], 1)


def pictures(n: int, size: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


# ---- any module


@pytest.mark.parametrize(("n", "channels"), [(1, 3), (32, 1), (67, 3)])
def test_a_module_gets_pictures_between_zero_and_one(n: int, channels: int) -> None:
    given = pictures(n, channels=channels)
    features, logits = network(Averages().eval())(given)
    assert logits is None
    wanted = np.concatenate([2 * given.mean((1, 2)), given[:, :, 0, :1].mean(1)], 1) / 255
    torch.testing.assert_close(features, torch.from_numpy(wanted).float())


def test_a_module_may_classify() -> None:
    class Classifier(Averages):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            found = super().forward(images)
            return found, found.double() @ torch.ones(4, 2, dtype=torch.float64)

    features, logits = network(Classifier().eval())(pictures(70))
    assert logits is not None and logits.dtype == torch.float32
    torch.testing.assert_close(logits, features.sum(1, keepdim=True).expand(-1, 2))


def test_arrays_maps_and_tensors_give_the_same(tmp_path: Path) -> None:
    given = pictures(100)
    np.save(tmp_path / "pictures.npy", given)
    ours = network(Averages().eval())
    wanted = ours(given).features
    assert torch.equal(ours(np.load(tmp_path / "pictures.npy", mmap_mode="r")).features, wanted)
    assert torch.equal(ours(torch.from_numpy(given)).features, wanted)
    assert torch.equal(ours(torch.from_numpy(given).permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)).features, wanted)


def test_large_pictures_come_in_small_chunks() -> None:
    sizes = []

    class Counting(Averages):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    network(Counting().eval())(np.zeros((9, 1024, 1024, 1), np.uint8))
    assert sizes == [4, 4, 1]  # four million pixels at a time


@pytest.mark.parametrize(
    ("images", "error", "told"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), InvalidType, "samples in uint8, got float32"),
        ([[1]], InvalidType, "samples in uint8, got list"),
        (np.zeros((2, 3, 8, 8), np.uint8), InvalidValue, r"samples \(n, H, W, 1 or 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), InvalidValue, "n >= 1"),
        (np.zeros((8, 8, 3), np.uint8), InvalidValue, r"got \(8, 8, 3\)"),
    ],
)
def test_what_is_no_pictures_is_refused(images: object, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        network(Averages().eval())(images, "samples")


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x.mean(), lambda x: [1], lambda x: x[:1].flatten(1)])
def test_a_module_that_gives_no_features_is_refused(wrong: object) -> None:
    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> object:
            return wrong(images)

    with pytest.raises(InvalidValue, match=r"expected features \(3, D\) of Wrong, got"):
        network(Wrong().eval())(pictures(3))


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"call \.eval\(\) first"):
        network(Averages())


# ---- precision


def test_lower_precision_around_it_changes_nothing() -> None:
    torch.manual_seed(0)
    ours = network(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Flatten(), nn.Linear(64 * 36, 32)).eval())
    given = pictures(4)
    wanted = ours(given).features
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(given).features, wanted)
    assert wanted.dtype == torch.float32 and not wanted.requires_grad
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(ours(given).features, wanted)
    finally:
        torch.set_float32_matmul_precision(before)


def test_settings_of_precision_are_put_back() -> None:
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    faster = ["tf32", "tf32", "bf16"]
    with ExitStack() as stack:
        for setting, precision in zip(settings, faster, strict=True):
            stack.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
            setting.fp32_precision = precision
        with pytest.raises(ZeroDivisionError), whole_float32():
            assert [setting.fp32_precision for setting in settings] == ["ieee", "ieee", "ieee"]
            raise ZeroDivisionError
        assert [setting.fp32_precision for setting in settings] == faster


# ---- names and manifests


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights.write_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def test_only_the_published_weights_make_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    ours = network("inception-2015", weights=weights)
    assert [ours.score_name(metric) for metric in ("fid", "kid", "is", "prdc", "fid-infinity")] == [
        f"{name}[inception-2015:{sha[:8]}]" for name in ("FD", "KD", "IS", "prdc", "FD-infinity")
    ]
    monkeypatch.setattr(inception, "INCEPTION_2015", dataclasses.replace(INCEPTION_2015, sha256=sha))
    published = network("inception-2015", weights=weights)
    assert [published.score_name(metric) for metric in ("fid", "kid", "is", "prdc", "fid-infinity")] == [
        "FID",
        "KID",
        "IS",
        "prdc[inception-2015]",
        "FID-infinity",
    ]
    assert network("fashion-cnn").score_name("fid") == fashion.FRECHET_NAME == "FD[fashion-cnn]"
    assert network(Averages().eval()).score_name("kid") == "KD[Averages]"


def test_a_manifest_tells_what_somebody_else_needs(weights: Path) -> None:
    told = json.loads(json.dumps(network("inception-2015", preset="clean", weights=weights).manifest()))
    assert told["versions"].keys() == {"ganfast", "torch", "numpy"}
    assert {name: told[name] for name in told if name not in ("versions", "network")} == {
        "preset": "clean",
        "resize": "bicubic_antialiased",
        "size": 299,
        "scale": "(x - 128) / 128",
        "weights": "inception.pth",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "published": False,
    }
    told = network("fashion-cnn").manifest()
    assert told["network"] == "fashion-cnn" and told["weights_sha256"] == fashion.card()["sha256"]
    mine = network(Averages().eval()).manifest()
    assert mine.keys() == told.keys() | {"module"} and mine["module"] == repr(Averages())  # weights alone do not tell


def test_modules_with_other_weights_have_another_digest() -> None:
    one, other = Averages().eval(), Averages().eval()
    assert digest(one.state_dict()) == digest(other.state_dict())
    with torch.no_grad():
        other.scale.add_(1)
    assert digest(one.state_dict()) != digest(other.state_dict())
    named = network(one).manifest()["weights_sha256"], network(other).manifest()["weights_sha256"]
    assert named == (digest(one.state_dict()), digest(other.state_dict()))


def test_fashion_is_one_of_them() -> None:
    given = pictures(20, size=28, channels=1)
    outputs = network("fashion-cnn")(given)
    torch.testing.assert_close(outputs.features, fashion.features(given))
    assert outputs.logits is not None
    torch.testing.assert_close(outputs.logits, fashion.logits(given))


@pytest.mark.parametrize(
    ("which", "options", "told"),
    [
        ("inception", {}, "did you mean 'inception-2015'"),
        ("fashion-cnn", {"preset": "clean"}, "preset='clean' does not apply to fashion-cnn"),
        ("fashion-cnn", {"weights": "a.pth"}, "weights='a.pth' does not apply to fashion-cnn"),
        ("efficientnet-lite0", {"preset": "clean"}, "does not apply to efficientnet-lite0"),
        ("inception-2015", {"preset": "cleaned"}, "did you mean 'clean'"),
    ],
)
def test_what_there_is_not_is_refused(which: str, options: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidValue, match=told):
        network(which, **options)


def test_a_network_is_a_name_or_a_module() -> None:
    with pytest.raises(InvalidType, match=r"name of a network or a torch\.nn\.Module, got type"):
        network(Averages)
    assert set(NAMES) == {"inception-2015", "efficientnet-lite0", "fashion-cnn"}


def test_anything_that_computes_outputs_is_a_network() -> None:
    double = FeatureNetwork("double", lambda x: Outputs(2 * x.flatten(1).float(), None), torch.device("cpu"), 2)
    given = pictures(5)
    assert np.array_equal(double(given).features.numpy(), 2.0 * given.reshape(5, -1))


# ---- files of weights


def test_a_file_that_is_cut_off_says_what_to_do(weights: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1_000_000])
    with pytest.raises(Damaged, match=r"cut\.pth cannot be read as weights .*fetch it again"):
        network("inception-2015", weights=cut)
    cut.write_bytes(b"")
    with pytest.raises(Damaged, match="cannot be read as weights"):
        load(cut)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before 1.6"])
def test_any_damage_is_an_error_of_ours_or_other_weights(archive: bool, tmp_path: Path) -> None:
    whole = nn.BatchNorm2d(3).state_dict()
    torch.save(whole, tmp_path / "whole.pth", _use_new_zipfile_serialization=archive)
    sound = load(tmp_path / "whole.pth")
    data, rng, damaged = (tmp_path / "whole.pth").read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        hurt = np.frombuffer(data, np.uint8).copy()
        hurt[rng.integers(len(hurt), size=5)] = rng.integers(256, size=5)
        (tmp_path / "hurt.pth").write_bytes(hurt.tobytes())
        try:
            assert load(tmp_path / "hurt.pth").sha256 != sound.sha256
        except Damaged:
            damaged += 1
    assert damaged > 100  # others hit numbers, padding or parts that nobody reads


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.bias": Program()}, tmp_path / "program.pth")
    with pytest.raises(Damaged, match="cannot be read as weights"):
        load(tmp_path / "program.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Program()))
    with pytest.raises(Damaged, match="cannot be read as weights"):
        load(tmp_path / "plain.pth")
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "inception-2015-12-05.pt", "w") as archive:
        archive.writestr("inception-2015-12-05/code/__torch__.py", "")
    with pytest.raises(InvalidData, match=r"is TorchScript, a program, .*pt_inception-2015-12-05-6726825d\.pth"):
        network("inception-2015", weights=tmp_path / "inception-2015-12-05.pt")


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    for content in ([1, 2], {"a": 1}, torch.zeros(3)):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(Damaged, match="holds no state dict"):
            load(tmp_path / "other.pth")
    with pytest.raises(NotFound, match="does not exist"):
        load(tmp_path / "nothing.pth")


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    right = nn.Linear(3, 2).state_dict()

    def filled(**changes: Tensor | None) -> None:
        given = {name: values for name, values in {**right, **changes}.items() if values is not None}
        torch.save(given, tmp_path / "w.pth")
        fill(nn.Linear(3, 2), load(tmp_path / "w.pth"))

    filled()
    with pytest.raises(Damaged, match=r"w\.pth does not fit Linear: bias is missing"):
        filled(bias=None)
    with pytest.raises(Damaged, match="extra is not one of its weights"):
        filled(extra=torch.zeros(1))
    with pytest.raises(Damaged, match=r"weight is \(3, 2\) and should be \(2, 3\)"):
        filled(weight=torch.zeros(3, 2))
    with pytest.raises(Damaged, match="bias holds NaN or Inf;"):
        filled(bias=torch.tensor([0, torch.nan]))
    with pytest.raises(Damaged, match="and 1 more like it"):
        filled(bias=None, weight=None)


def test_batch_norms_counters_may_be_missing() -> None:
    norm = nn.BatchNorm2d(2)
    older = OrderedDict((name, values + 1) for name, values in norm.state_dict().items() if "num_batches" not in name)
    file = io.BytesIO()
    torch.save(older, file)
    fill(norm, weight_files.Weights("older.pth", "", torch.load(io.BytesIO(file.getvalue()), weights_only=True)))
    assert torch.equal(norm.running_mean, torch.ones(2))


# ---- the published one


@pytest.fixture
def upstream(tmp_path: Path) -> Published:
    """A file that is published at two addresses, under two names; the first one is gone."""
    there = tmp_path / "second-name.pth"
    torch.save({"weight": torch.zeros(2)}, there)
    urls = (tmp_path / "gone" / "first-name.pth").as_uri(), there.as_uri()
    return Published("the weights of a test", urls, hashlib.sha256(there.read_bytes()).hexdigest(), there.stat().st_size)


def test_it_is_fetched_once(upstream: Published, tmp_path: Path) -> None:
    path = fetched(upstream, tmp_path / "cache")
    assert path == tmp_path / "cache" / "weights" / "first-name.pth"
    assert load(path).sha256 == upstream.sha256
    (tmp_path / "second-name.pth").unlink()
    assert fetched(upstream, tmp_path / "cache") == path
    assert [file.name for file in path.parent.iterdir()] == ["first-name.pth"]


def test_either_name_in_the_cache_will_do(upstream: Published, tmp_path: Path) -> None:
    mine = tmp_path / "cache" / "weights" / "second-name.pth"
    mine.parent.mkdir(parents=True)
    mine.write_bytes((tmp_path / "second-name.pth").read_bytes())
    assert fetched(upstream, tmp_path / "cache") == mine


def test_another_file_at_the_address_is_not_kept(upstream: Published, tmp_path: Path) -> None:
    (tmp_path / "second-name.pth").write_bytes(b"a page that says not found")
    with pytest.raises(NotFound, match=r"first-name\.pth: .*second-name\.pth: not the published contents.*put first-name\.pth"):
        fetched(upstream, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_in_the_cache_says_what_to_do(upstream: Published, tmp_path: Path) -> None:
    path = fetched(upstream, tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"first-name\.pth is not the weights of a test: .*delete it, and it is fetched again"):
        fetched(upstream, tmp_path / "cache")


def test_without_a_network_it_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "cache"))
    nowhere = tuple((tmp_path / name).as_uri() for name in INCEPTION_2015.names)
    monkeypatch.setattr(inception, "INCEPTION_2015", dataclasses.replace(INCEPTION_2015, urls=nowhere))
    with pytest.raises(NotFound) as caught:
        network("inception-2015")
    assert str(tmp_path / "cache" / "weights") in str(caught.value)
    assert "put pt_inception-2015-12-05-6726825d.pth (96 MB, SHA-256 6726825d" in str(caught.value)


def test_the_published_name_carries_the_published_hash() -> None:
    assert all(name.endswith(f"{INCEPTION_2015.sha256[:8]}.pth") for name in INCEPTION_2015.names)


def test_a_part_in_training_mode_is_refused() -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)).eval()
    module[1].train()
    with pytest.raises(InvalidValue, match="evaluation mode"):
        network(module)


@pytest.mark.parametrize("tensors", [{0: torch.zeros(2)}, {"fc.weight": torch.zeros(2, 2).to_sparse()}])
def test_what_is_no_state_dict_is_called_damaged(tmp_path: Path, tensors: dict[object, Tensor]) -> None:
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(Damaged, match="holds no state dict"):
        network("efficientnet-lite0", weights=tmp_path / "weights.pth")
