"""The command: what it leaves, what it prints, and one line and exit status 2 for whatever it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ganfast
from ganfast import cli, recipes
from ganfast.engine import loop, runfolder
from ganfast.engine.settings import Settings

Command = Callable[..., tuple[int, str, str]]
SMALL = ["--width", "4", "--batch", "4"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.npz")
    return tmp_path / "data.npz"


def write_data(place: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
    np.savez(place, images=images, labels=np.arange(24) % 3)


def picture(place: Path, side: int = 16) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(place)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind that a sample may be asked of: dcgan, cgan, points. Only the first has its report drawn."""
    folder = tmp_path_factory.mktemp("finished")
    write_data(folder / "data.npz")
    train = ["train", "dcgan", "--data", str(folder / "data.npz"), "--steps", "4", *SMALL, "--log-every", "1"]
    with pytest.raises(SystemExit) as end:
        cli.main([*train, "--out", str(folder / "dcgan"), "--tick-every", "2"])
    assert end.value.code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_report", lambda run: run)
        patch.setattr(loop, "picture", lambda trainer: Image.new("L", (8, 8)))
        ganfast.train("cgan", folder / "data.npz", steps=1, out=folder / "cgan", width=4, batch=4)
        ganfast.train("gan", "toy:ring8", steps=1, out=folder / "points", width=4, batch=4)
    return folder


# ---- what a run leaves


def test_a_run_folder_has_everything(finished: Path) -> None:
    run = finished / "dcgan"
    assert {"config.json", "log.jsonl", "samples", "checkpoints", "training.webp", "curves.png", "report.html"} <= {
        place.name for place in run.iterdir()
    }
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert {"critic/adversarial", "generator/adversarial", "critic/grad_norm", "generator/grad_norm"} <= set(row)
        assert {"D(real)", "D(fake)", "images_per_second", "kimg", "seconds"} <= set(row)
        assert all(math.isfinite(value) for value in row.values()) and row["kimg"] == row["step"] * 4 / 1000
    assert sorted(file.name for file in (run / "samples").iterdir()) == [f"step-{n:08d}.png" for n in (0, 2, 4)]
    for file in (*(run / "samples").iterdir(), run / "curves.png"):
        with Image.open(file) as image:
            image.verify()
    with Image.open(run / "training.webp") as film:
        assert getattr(film, "n_frames", 1) == 3
    assert "<html" in (run / "report.html").read_text()
    config = json.loads((run / "config.json").read_text())
    assert (config["recipe"], config["steps"], config["engine"]["batch"], config["options"]["width"]) == ("dcgan", 4, 4, 4)
    assert config["resume"] == shlex.join(
        ["ganfast", "train", "dcgan", "--data", str(finished / "data.npz"), "--out", str(run), "--steps", "4", "--resume"]
    )


def test_no_terminal_means_lines(data: Path, tmp_path: Path) -> None:
    """A process of its own, as in a job's log: no escape sequences, no carriage returns, one result on stdout."""
    words = [sys.executable, "-m", "ganfast", "train", "dcgan", "--data", str(data), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*words, "--steps", "3", *SMALL], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"3 iterations; everything is in {tmp_path / 'run' / 'report.html'}\n"
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    assert [line.split(" | ")[0] for line in done.stderr.splitlines()] == [f"dcgan: step {n}/3" for n in (1, 2, 3)]
    again = subprocess.run([*words, "--steps", "3"], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and again.stdout == "" and again.stderr.count("\n") == 1
    assert "already holds a run (config.json): continue it with --resume, or choose another --out" in again.stderr


def test_resuming_by_command(command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda run: run)
    train = ["train", "dcgan", "--data", data, "--out", tmp_path / "run", *SMALL]
    assert command(*train, "--steps", 2)[0] == 0
    code, out, _ = command(*train, "--steps", 4, "--resume")
    assert code == 0 and out.startswith("4 iterations") and ganfast.Trainer.resume(tmp_path / "run").steps == 4
    damaged = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, err = command(*train, "--steps", 5, "--resume")
    assert code == 0 and out.startswith("5 iterations") and err.splitlines()[0].startswith(f"{damaged} is damaged")


def test_a_run_that_diverges_ends_with_status_1(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step size of 1e30 makes every weight infinite: the run goes back once, and then says where it broke."""
    monkeypatch.setattr(loop, "write_report", lambda run: run)
    train = ["train", "gan", "--data", data, "--out", tmp_path / "run", *SMALL, "--lr", "1e30"]
    code, out, err = command(*train, "--steps", 50, "--checkpoint-every", 1)
    last = err.splitlines()[-1]
    assert code == 1 and out == "" and "Traceback" not in err
    assert re.match(r"ganfast: iteration \d+, phase '(critic|generator)': .*first not finite: ", last)
    assert err.count("with other random draws") == 1
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["phase"] in ("critic", "generator")


# ---- refusals


def test_recipes_and_options_that_do_not_exist(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert refused("train", "dcgam", "--data", data, "--out", out) == "no recipe is called 'dcgam'; did you mean 'dcgan'?"
    assert refused("trian", "dcgan") == "no command is called 'trian'; did you mean 'train'?"
    message = refused("train", "dcgan", "--data", data, "--out", out, "--bach", "4")
    assert "--bach" in message and "--batch" in message
    assert "'--batch'" in refused("train", "dcgan", "--data", data, "--out", out, "--batch", "many")
    assert "'--precision'" in refused("train", "dcgan", "--data", data, "--out", out, "--precision", "fp8")
    assert "batch: expected at least 1, got 0" in refused("train", "dcgan", "--data", data, "--out", out, "--batch", "0")
    assert "steps: expected at least 0" in refused("train", "dcgan", "--data", data, "--out", out, "--steps", "-1")
    assert "'tpu'" in refused("train", "dcgan", "--data", data, "--out", out, "--device", "tpu")
    assert "'cuda:99'" in refused("train", "dcgan", "--data", data, "--out", out, "--device", "cuda:99")
    assert refused("train", "dcgan", "--out", out) == "Missing option '--data'."
    assert refused("train", "dcgan", "--data", data) == "Missing option '--out'."
    assert "expected a recipe before --data" in refused("train", "--data", data, "--out", out)
    assert "surplus" in refused("train", "dcgan", "surplus", "--data", data, "--out", out)


def test_data_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path) -> None:
    def train(data: Any, *more: Any, recipe: str = "dcgan") -> str:
        return refused("train", recipe, "--data", data, "--out", tmp_path / "deep" / "run", *SMALL, *more)

    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in train(tmp_path / "empty")
    assert str(tmp_path / "absent") in train(tmp_path / "absent")
    assert "did you mean 'fashion-mnist-10k'" in train("fashion-mnist-10")
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt" in train(tmp_path / "notes.txt")

    for number in range(3):
        picture(tmp_path / "broken" / f"{number}.png")
    whole = (tmp_path / "broken" / "1.png").read_bytes()
    (tmp_path / "broken" / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "1.png" in train(tmp_path / "broken")

    for name, side in (("a.png", 16), ("b.png", 20)):
        picture(tmp_path / "mixed" / name, side)
    assert "b.png" in train(tmp_path / "mixed") or "a.png" in train(tmp_path / "mixed")

    picture(tmp_path / "labelled" / "a.png")
    (tmp_path / "labelled" / "dataset.json").write_text(json.dumps({"labels": [["b.png", 0]]}))
    assert "dataset.json" in train(tmp_path / "labelled", recipe="cgan")
    (tmp_path / "labelled" / "dataset.json").write_text("{")
    assert "dataset.json" in train(tmp_path / "labelled", recipe="cgan")

    write_data(tmp_path / "data.npz")
    assert "image_size" in train(tmp_path / "data.npz", "--image-size", "0")
    assert "image_size" in train(tmp_path / "data.npz", "--image-size", "-3")
    assert "9" in train(tmp_path / "data.npz", "--image-size", "9")  # no DCGAN has 9 pixels a side
    assert "did you mean 'lanczos'" in train(tmp_path / "data.npz", "--filter", "lanzcos")
    assert "needs 'a'" in train(tmp_path / "data.npz", recipe="cyclegan")
    assert "needs" in train("toy:ring8", recipe="cgan")


def test_places_that_cannot_be_written(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        assert f"{tmp_path / 'file'} is a file" in refused("train", "dcgan", "--data", data, "--out", out, *SMALL)
    assert "/proc/nothing" in refused("train", "dcgan", "--data", data, "--out", "/proc/nothing/run", *SMALL)


def test_places_that_may_not_be_entered(
    refused: Callable[..., str], finished: Path, data: Path, closed: Path, tmp_path: Path
) -> None:
    train = ["train", "dcgan", *SMALL]
    assert "Permission denied" in refused(*train, "--data", data, "--out", closed / "run")
    assert f"{closed / 'x.npz'} cannot be read" in refused(*train, "--data", closed / "x.npz", "--out", tmp_path / "run")
    for place in (closed / "inner", closed):
        assert "Permission denied" in refused(*train, "--data", data, "--out", place, "--resume")
        assert "Permission denied" in refused("sample", place, "--out", tmp_path / "a.png")
    assert "ermission denied" in refused("sample", finished / "dcgan", "--out", closed / "a.png")


def test_names_that_are_too_long(refused: Callable[..., str], finished: Path, data: Path, tmp_path: Path) -> None:
    train, long = ["train", "dcgan", *SMALL], tmp_path / ("n" * 300)
    assert "File name too long" in refused(*train, "--data", data, "--out", long)
    assert "File name too long" in refused(*train, "--data", data, "--out", long, "--resume")
    assert "File name too long" in refused(*train, "--data", long, "--out", tmp_path / "run")
    assert "File name too long" in refused("sample", long, "--out", tmp_path / "a.png")
    assert "File name too long" in refused("sample", finished / "dcgan", "--out", long)


def test_a_run_among_its_own_data(refused: Callable[..., str], tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png")
    for out in ("images", "images/run"):
        message = refused("train", "dcgan", "--data", tmp_path / "images", "--out", tmp_path / out, *SMALL)
        assert f"{tmp_path / out} lies within the data {tmp_path / 'images'}" in message


@pytest.mark.parametrize("recipe", ["dcgan", "gan"])
def test_too_little_memory(command: Command, data: Path, tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than any machine can address. What the run had begun is gone, so that the corrected command is taken."""
    monkeypatch.setattr(runfolder, "_open_events", lambda *_: None)
    train = ["train", recipe, "--data", data, "--out", tmp_path / "deep" / "run"]
    for batch, width in ((10**14, 4), (4, 10**12)):
        code, out, err = command(*train, "--width", width, "--batch", batch)
        line = f"ganfast: out of memory with batch {batch} and width {width}: make --batch or --width smaller"
        assert (code, out, err.splitlines()[-1]) == (2, "", line) and "Traceback" not in err
        assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_later(
    refused: Callable[..., str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    shutil.copytree(finished / "dcgan", tmp_path / "run")
    monkeypatch.setattr(loop, "run", fail)
    message = refused("train", "dcgan", "--data", finished / "data.npz", "--out", tmp_path / "run", "--resume", "--steps", 9)
    assert message.startswith(f"out of memory for the run in {tmp_path / 'run'}")
    monkeypatch.setattr(ganfast.Trainer, "sample", fail)
    message = refused("sample", tmp_path / "run", "--n", 7, "--out", tmp_path / "a.npy")
    assert message == "out of memory with 7 samples: make --n smaller"


def test_other_errors_keep_their_traceback(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train", "dcgan", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL])
    assert not (tmp_path / "run").exists()


def test_a_warning_is_one_line(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_report", lambda run: run)
    for number in range(100):
        picture(tmp_path / "set" / f"{number:02}.png")
    (tmp_path / "set" / "07.png").write_bytes(b"broken")
    for run in ("first", "again"):  # decoded, and from the cache
        code, _, err = command("train", "dcgan", "--data", tmp_path / "set", "--out", tmp_path / run, "--steps", 0, *SMALL)
        assert code == 0
        assert err.splitlines()[0] == "ganfast: set: 1 of 100 images cannot be read and are left out: 07.png"
    assert "UserWarning" not in err and "warnings.warn" not in err


def test_a_run_refused_at_its_beginning_leaves_the_place_free(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    decay = ["--decay", "linear", "--decay-steps", 2, "--steps", 4]
    assert "iteration 2" in refused("train", "dcgan", "--data", data, "--out", tmp_path / "deep" / "run", *SMALL, *decay)


def test_a_step_size_is_finite(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    for value in ("inf", "-inf", "nan"):
        assert f", got {value}" in refused("train", "dcgan", "--data", data, "--out", tmp_path / "run", "--lr", value)


def test_nothing_to_resume(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("absent", "empty"):
        assert str(tmp_path / place) in refused("train", "dcgan", "--data", data, "--out", tmp_path / place, "--resume")
    assert "no folder" in refused("train", "dcgan", "--data", data, "--out", tmp_path / "absent", "--resume")


def test_resuming_otherwise_than_it_began(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "dcgan", tmp_path / "run")
    go_on = ["--data", finished / "data.npz", "--out", tmp_path / "run", "--resume"]
    assert "batch: the run in" in refused("train", "dcgan", *go_on, "--batch", "8")
    assert "width: the run in" in refused("train", "dcgan", *go_on, "--width", "8")
    assert "filter: the run in" in refused("train", "dcgan", *go_on, "--filter", "box")
    assert "holds a run of 'dcgan', not of 'gan'" in refused("train", "gan", *go_on)
    assert "the contents of 'toy:ring8' differ" in refused("train", "dcgan", *go_on[2:], "--data", "toy:ring8")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "config.json has no 'recipe'" in refused("train", "dcgan", *go_on)


# ---- sampling


def test_samples_in_every_form(command: Command, finished: Path, tmp_path: Path) -> None:
    run = finished / "dcgan"
    code, out, err = command("sample", run, "--n", 5, "--out", tmp_path / "a.npy")
    assert (code, out, err) == (0, f"5 samples of dcgan, iteration 4, in {tmp_path / 'a.npy'}\n", "")
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (5, 16, 16, 1) and array.dtype == np.uint8
    expected = ganfast.Trainer.resume(run).sample(5, seed=0)
    assert np.array_equal(array, expected)
    assert command("sample", run, "--n", 5, "--out", tmp_path / "new" / "a.npz")[0] == 0
    assert np.array_equal(np.load(tmp_path / "new" / "a.npz")["samples"], array)
    assert command("sample", run, "--n", 5, "--out", tmp_path / "folder")[0] == 0
    assert [file.name for file in sorted((tmp_path / "folder").iterdir())] == [f"{n:06d}.png" for n in range(5)]
    with Image.open(tmp_path / "folder" / "000004.png") as image:
        assert np.array_equal(np.asarray(image), array[4, :, :, 0])
    assert command("sample", run, "--out", tmp_path / "grid.png")[0] == 0
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width >= 8 * 16
    assert command("sample", run, "--n", 5, "--seed", 1, "--out", tmp_path / "b.npy")[0] == 0
    assert not np.array_equal(np.load(tmp_path / "b.npy"), array)
    assert command("sample", run / "checkpoints" / "step-00000002", "--n", 5, "--out", tmp_path / "c.npy")[0] == 0
    assert not np.array_equal(np.load(tmp_path / "c.npy"), array)


def test_samples_with_labels_and_of_points(command: Command, finished: Path, tmp_path: Path) -> None:
    assert command("sample", finished / "cgan", "--n", 4, "--labels", 2, "--out", tmp_path / "a.npy")[0] == 0
    expected = ganfast.Trainer.resume(finished / "cgan").sample(4, labels=[2, 2, 2, 2], seed=0)
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    assert command("sample", finished / "points", "--n", 7, "--out", tmp_path / "b.npy")[0] == 0
    assert np.load(tmp_path / "b.npy").shape == (7, 2) and np.load(tmp_path / "b.npy").dtype == np.float32


def test_samples_refused(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    run, out = finished / "dcgan", tmp_path / "new" / "a.npy"
    assert str(tmp_path / "absent") in refused("sample", tmp_path / "absent", "--out", out)
    assert "no run in" in refused("sample", tmp_path, "--out", out)
    assert refused("sample", run) == "Missing option '--out'."
    assert "'--n'" in refused("sample", run, "--n", "0", "--out", out)
    assert "'--labels'" in refused("sample", finished / "cgan", "--labels", "cat", "--out", out)
    assert "labels from 0 to 2, got 3" in refused("sample", finished / "cgan", "--labels", "3", "--out", out)
    assert "labels from 0 to 2, got -1" in refused("sample", finished / "cgan", "--labels", "-1", "--out", out)
    assert "label" in refused("sample", run, "--labels", "1", "--out", out)
    assert "truncation" in refused("sample", run, "--truncation", "-1", "--out", out)
    assert "'cuda:99'" in refused("sample", run, "--device", "cuda:99", "--out", out)
    assert ".jpg" in refused("sample", run, "--out", tmp_path / "a.jpg")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "full is a folder that is not empty" in refused("sample", run, "--out", tmp_path / "full")
    assert "mine is a file" in refused("sample", run, "--out", tmp_path / "full" / "mine" / "a.npy")
    assert "points are no pictures" in refused("sample", finished / "points", "--out", tmp_path / "folder")


def test_a_run_without_a_checkpoint_has_no_samples(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    ganfast.Trainer("dcgan", data, out=tmp_path / "run", width=4)
    message = refused("sample", tmp_path / "run", "--out", tmp_path / "new" / "a.npy")
    assert message == f"there is no checkpoint in {tmp_path / 'run' / 'checkpoints'} yet"


# ---- telling


def test_recipes_are_listed(command: Command) -> None:
    code, out, err = command("recipes")
    assert (code, err) == (0, "")
    for name in recipes.names():
        about = recipes.about(name)
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert about.paper in line and about.loss in line and about.constraint in line


def test_doctor_reports(command: Command) -> None:
    code, out, err = command("doctor")
    assert (code, err) == (0, "") and "torch" in out.lower()
    assert len(command("doctor", "--verbose")[1]) > len(out)


def test_help_lists_commands_and_recipes(command: Command) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = command(*arguments)
        assert (code, err) == (0, "") and out.startswith("Usage: ganfast")
        assert all(name in out for name in ("train", "sample", "recipes", "doctor"))
    for arguments in (["train"], ["train", "--help"]):
        code, out, err = command(*arguments)
        assert (code, err) == (0, "") and out.startswith("Usage: ganfast train")
        assert all(re.search(rf"^\s+{name}\s", out, re.MULTILINE) for name in recipes.names())
    assert command("--version")[1] == f"ganfast {ganfast.__version__}\n"


@pytest.mark.parametrize("name", recipes.names())
def test_help_of_a_recipe_lists_every_option(command: Command, name: str) -> None:
    code, out, err = command("train", name, "--help")
    assert (code, err) == (0, "")
    own = [option for option in recipes.options(name) if option != "classes"]
    engine = [field.name for field in dataclasses.fields(Settings)]
    for option in ("data", "out", "steps", "resume", *own, *engine):
        assert re.search(rf"^\s+--{option.replace('_', '-')}\b", out, re.MULTILINE), option
    for choices in (option.choices for option in recipes.options(name).values() if option.choices):
        assert "|".join(map(str, choices)) in re.sub(r"\s", "", out)
    assert "arXiv" in out and f"Recipe {name}:" in out
