"""``ganfast eval``: what it prints and leaves, and one line and exit status 2 for whatever it refuses."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ganfast
from ganfast import cli
from ganfast.engine import loop
from ganfast.engine.runfolder import RunFolder
from ganfast.evaluation.evaluate import evaluate
from ganfast.evaluation.measures import Choices
from ganfast.metrics import FeatureStatistics

Command = Callable[..., tuple[int, str, str]]
FASHION = ["--network", "fashion-cnn"]


@pytest.fixture
def command(command: Command) -> Command:
    """``ganfast eval ARGUMENTS``."""
    return functools.partial(command, "eval")


def write(folder: Path, n: int, seed: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of images, and a run of each kind: images, points, one that never saved."""
    folder = tmp_path_factory.mktemp("place")
    write(folder / "fake", 24, 1)
    write(folder / "real", 30, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda run: run)
        patch.setattr(loop, "picture", lambda trainer: Image.new("L", (8, 8)))
        ganfast.train("dcgan", folder / "real", steps=2, out=folder / "run", width=4, batch=4)
        ganfast.train("gan", "toy:ring8", steps=1, out=folder / "points", width=4, batch=4)
    ganfast.Trainer("dcgan", folder / "real", out=folder / "unsaved", width=4)
    return folder


# ---- what it prints and leaves


def test_two_folders(command: Command, place: Path, tmp_path: Path) -> None:
    options = [*FASHION, "--metrics", "fid,kid,prdc,is", "--subset-size", 10, "--subsets", 4, "--splits", 2, "--k", 3]
    code, out, err = command(place / "fake", "--against", place / "real", *options, "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "")
    saved = json.loads((tmp_path / "scores.json").read_text())
    choices = Choices(splits=2, subsets=4, subset_size=10, k=3)
    expected = evaluate(place / "fake", place / "real", metrics="fid,kid,prdc,is", network="fashion-cnn", choices=choices)
    assert saved == {"scores": expected.values, "manifest": expected.manifest}
    shown = dict(re.findall(r"^ (\S+) +(\S+)", out, re.MULTILINE))
    for name, value in expected.values.items():
        if name.endswith(" std"):
            assert f"± {value:.2g}" in out
        else:
            assert shown[name] == f"{value:.6g}"
    assert "FID" not in out and out.splitlines()[-1] == "24 of fake against 30 of real"


def test_a_run_against_its_own_data(command: Command, place: Path, tmp_path: Path) -> None:
    code, out, err = command(place / "run", *FASHION, "--n", 20, "--seed", 3, "--out", tmp_path / "scores.json")
    assert (code, err) == (0, "") and out.splitlines()[-1] == "20 samples of dcgan, iteration 2, against 30 of real"
    told = json.loads((tmp_path / "scores.json").read_text())["manifest"]
    assert (told["fake"]["step"], told["fake"]["seed"], told["fake"]["n"], told["real"]["n"]) == (2, 3, 20, 30)
    again = command(place / "run" / "checkpoints" / "latest", *FASHION, "--n", 20, "--seed", 3, "--against", place / "real")
    assert again == (0, out, "")
    assert command(place / "run", *FASHION, "--n", 20, "--seed", 4)[1] != out


def test_statistics_for_others(command: Command, place: Path, tmp_path: Path) -> None:
    saving = [place / "real", *FASHION, "--metrics", "", "--save-statistics", tmp_path / "real.npz"]
    assert command(*saving) == (0, f"mean and covariance are in {tmp_path / 'real.npz'}\n", "")
    assert FeatureStatistics.load(tmp_path / "real.npz").count == 30
    against = command(place / "fake", "--against", tmp_path / "real.npz", *FASHION)[1]
    straight = command(place / "fake", "--against", place / "real", *FASHION)[1]
    assert against.splitlines()[:-1] == straight.splitlines()[:-1]
    assert against.splitlines()[-1] == "24 of fake against 30 of real.npz"


def test_help_lists_its_options(command: Command) -> None:
    code, out, err = command("--help")
    assert (code, err) == (0, "") and "RUN_OR_FOLDER" in out
    for option in ("against", "metrics", "network", "preset", "protocol", "weights", "n", "batch", "seed", "device", "out"):
        assert re.search(rf"^\s+--{option}\b", out, re.MULTILINE), option


# ---- refusals


def test_what_cannot_be_scored(refused: Callable[..., str], place: Path, tmp_path: Path) -> None:
    sides = [place / "fake", "--against", place / "real", *FASHION, "--out", tmp_path / "scores.json"]
    assert "no metric is called 'fdi'; did you mean 'fid'?" in refused(*sides, "--metrics", "fdi")
    assert "expected some of fid" in refused(*sides, "--metrics", "")
    assert "kid needs at least 1000 fake samples, got 24" in refused(*sides, "--metrics", "kid")
    assert "fake has 24 images, and 25 were asked for" in refused(*sides, "--n", 25)
    assert "'--n'" in refused(*sides, "--n", 1)
    assert "no feature network is called 'fashion'" in refused(*sides, "--network", "fashion")
    assert "preset='clean' does not apply to fashion-cnn" in refused(*sides, "--preset", "clean")
    assert "no preset is called 'cleen'; did you mean 'clean'?" in refused(
        *sides, "--network", "inception-2015", "--preset", "cleen"
    )
    assert "no protocol is called 'sngan-10k'; did you mean 'sngan-10k5k'?" in refused(*sides, "--protocol", "sngan-10k")
    assert "fake has 24 images, and 5000 were asked for" in refused(*sides, "--protocol", "sngan-10k5k")
    assert "n: protocol 'sngan-10k5k' says what it is" in refused(*sides, "--protocol", "sngan-10k5k", "--n", 9)
    assert "'cuda:99'" in refused(*sides, "--device", "cuda:99")
    absent = refused(*sides, "--network", "inception-2015", "--weights", tmp_path / "absent.pth")
    assert str(tmp_path / "absent.pth") in absent
    assert "against: fid of fake needs real images" in refused(place / "fake", *FASHION)
    assert str(tmp_path / "absent") in refused(tmp_path / "absent", "--against", place / "real", *FASHION)
    assert str(tmp_path / "absent") in refused(place / "fake", "--against", tmp_path / "absent", *FASHION)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    assert "broken.npz cannot be read as npz" in refused(place / "fake", "--against", tmp_path / "broken.npz", *FASHION)


def test_runs_that_cannot_be_scored(refused: Callable[..., str], place: Path, tmp_path: Path) -> None:
    assert "makes points, and scores are of images" in refused(place / "points", *FASHION)
    assert f"there is no checkpoint in {place / 'unsaved' / 'checkpoints'} yet" in refused(place / "unsaved", *FASHION)
    assert "toy:ring8 holds points" in refused(place / "run", *FASHION, "--n", 20, "--against", "toy:ring8", "--image-size", 16)


def test_features_of_another_network(refused: Callable[..., str], place: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    message = refused(place / "fake", "--against", tmp_path / "other.npz", *FASHION, "--out", tmp_path / "scores.json")
    assert message == "fake has 128 features an image and other.npz has 5: they are of different networks"


def test_places_that_cannot_be_written(refused: Callable[..., str], place: Path, tmp_path: Path, closed: Path) -> None:
    sides = [place / "fake", "--against", place / "real", *FASHION]
    for option in ("--out", "--save-statistics"):
        assert f"there is no folder {tmp_path / 'absent'}" in refused(*sides, option, tmp_path / "absent" / "x")
        assert "it is a folder" in refused(*sides, option, tmp_path)
        assert "ermission denied" in refused(*sides, option, closed / "x")


def test_memory_that_runs_out(refused: Callable[..., str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(ganfast.Trainer, "stream", fail)
    message = refused(place / "run", *FASHION, "--n", 20)
    assert message == "out of memory with 20 samples: make --n or --batch smaller"


# ---- during training


def test_training_is_scored_by_its_options(capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path) -> None:
    words = ["train", "dcgan", "--data", str(place / "real"), "--out", str(tmp_path / "run"), "--width", "4", "--batch", "4"]
    words += ["--steps", "4", "--eval-metrics", "fid,prdc", "--eval-every-kimg", "0.008", "--eval-n", "20"]
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    rows = RunFolder(tmp_path / "run").evaluations()
    assert [row["step"] for row in rows] == [2, 4]
    assert (tmp_path / "run" / "checkpoints" / "best").is_symlink() and (tmp_path / "run" / "scores.png").exists()
    said = capsys.readouterr().err
    assert f"iteration 2: FD[fashion-cnn] {rows[0]['metric/FD[fashion-cnn]']:.4g}, the best so far" in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "20 samples against 30 real images; checkpoints/best is of step" in page
    command = json.loads((tmp_path / "run" / "config.json").read_text())["command"]
    assert "--eval-metrics fid,prdc --eval-every-kimg 0.008 --eval-n 20" in command
