from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ganfast.engine import runfolder
from ganfast.engine.runfolder import RunFolder, read_config, read_rows, sample_pictures
from ganfast.errors import Damaged, InvalidType, InvalidValue, NotFound, NotWritable
from ganfast.files import write_atomically

CONFIG = {"recipe": "r", "engine": {"batch": 64, "seed": 0, "decay": None}, "steps": 10}


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if "tensorboard" not in path.parts)


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint8))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs" / "a", CONFIG)


def test_a_new_folder_holds_its_configuration(run: RunFolder) -> None:
    assert names(run.path) == ["config.json"]
    assert json.loads((run.path / "config.json").read_text()) == CONFIG
    assert RunFolder(run.path).config == CONFIG


def test_an_empty_folder_and_one_with_other_things_are_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path, CONFIG)
    assert names(tmp_path) == ["config.json", "notes.txt"]


@pytest.mark.parametrize("trace", ["config.json", "log.jsonl", "samples", "checkpoints"])
def test_a_run_is_not_written_over(tmp_path: Path, trace: str) -> None:
    if trace in ("samples", "checkpoints"):
        (tmp_path / trace).mkdir()
    else:
        (tmp_path / trace).write_text("{}")
    before = names(tmp_path)
    with pytest.raises(InvalidValue, match=rf"already holds a run \({trace}\).*--resume.*--out"):
        RunFolder.create(tmp_path, CONFIG)
    assert names(tmp_path) == before


def test_resuming_keeps_the_log_and_takes_the_new_configuration(run: RunFolder) -> None:
    run.append({"step": 1, "critic/loss": 1.0})
    again = RunFolder.create(run.path, {**CONFIG, "steps": 20}, resume=True)
    assert again.config["steps"] == 20
    assert again.rows() == [{"step": 1, "critic/loss": 1.0}]


def test_resuming_where_nothing_is_begins(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path / "new", CONFIG, resume=True).rows() == []


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_a_file_in_the_way_is_named_and_left(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotWritable, match=f"cannot write to .*expected a folder, and {tmp_path / 'file'} is a file"):
        RunFolder.create(tmp_path / "file" / below, CONFIG)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_place_that_cannot_be_made_is_named() -> None:
    with pytest.raises(NotWritable, match="cannot make the folder /proc/nowhere/a"):
        RunFolder.create("/proc/nowhere/a", CONFIG)


@pytest.mark.parametrize("place", ["closed/run", "closed/inner/deep/run", "n" * 300])
def test_a_place_that_may_not_be_entered_or_named_is_refused(tmp_path: Path, closed: Path, place: str) -> None:
    with pytest.raises(NotWritable, match=r"cannot make the folder .*: (Permission denied|File name too long)"):
        RunFolder.create(tmp_path / place, CONFIG)
    closed.chmod(0o700)
    assert names(tmp_path) == ["closed", "closed/inner"]


def test_a_run_that_may_not_be_entered(closed: Path) -> None:
    with pytest.raises(Damaged, match=r"config\.json cannot be read: Permission denied"):
        RunFolder(closed)
    with pytest.raises(NotWritable, match=r"config\.json: Permission denied"):
        RunFolder.create(closed, CONFIG)
    with pytest.raises(NotWritable, match=r"cannot lock .*\.lock: Permission denied"), runfolder.locked(closed):
        pass


def test_a_run_lies_outside_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    config = {**CONFIG, "data": {"source": str(tmp_path / "images")}}
    for inside in ("images", "images/runs/a", "link/a"):
        with pytest.raises(InvalidValue, match=r"lies within the data .*/images, .*choose an --out elsewhere"):
            RunFolder.create(tmp_path / inside, config)
    assert names(tmp_path) == ["images", "link"]
    RunFolder.create(tmp_path / "images2", config)
    RunFolder.create(tmp_path, config)  # a folder that holds both is no trouble


def test_a_failure_while_creating_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NotWritable, match=r"config\.json: No space left on device"):
        RunFolder.create(tmp_path / "deep" / "run", CONFIG)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, object(), {1, 2}])
def test_a_configuration_that_json_cannot_hold_is_refused_before_anything_is_made(tmp_path: Path, value: object) -> None:
    with pytest.raises(InvalidValue, match=r"config\.json: expected numbers, strings"):
        RunFolder.create(tmp_path / "run", {"engine": {"x": value}})
    assert list(tmp_path.iterdir()) == []


def test_opening_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"no run in {tmp_path}"):
        RunFolder(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": ')
    with pytest.raises(Damaged, match=r"config\.json is not JSON"):
        RunFolder(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(Damaged, match="expected a JSON object, got list"):
        read_config(tmp_path)


def test_a_row_is_on_disk_when_append_returns(run: RunFolder) -> None:
    run.append({"step": 7, "kimg": 0.448, "critic/loss": torch.tensor(0.5), "D(real)": np.float32(0.25), "note": "x\u2028\ny"})
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 7, "kimg": 0.448, "critic/loss": 0.5, "D(real)": 0.25, "note": "x\u2028\ny"}
    ]
    assert run.rows()[0]["note"] == "x\u2028\ny"


def test_values_that_are_not_finite_stay_json_and_come_back(run: RunFolder) -> None:
    run.append({"step": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    stored = json.loads((run.path / "log.jsonl").read_text(), parse_constant=refuse)
    assert stored == {"step": 1, "a": None, "b": None, "c": None, "d": 1.5, "nonfinite": {"a": "nan", "b": "inf", "c": "-inf"}}
    (row,) = run.rows()
    assert math.isnan(row.pop("a"))
    assert row == {"step": 1, "b": math.inf, "c": -math.inf, "d": 1.5}


def test_a_row_that_cannot_be_written_leaves_the_log_alone(run: RunFolder) -> None:
    run.append({"step": 1})
    with pytest.raises(InvalidType, match="expected a number or a string for 'bad', got list"):
        run.append({"step": 2, "bad": [1]})
    with pytest.raises(InvalidType, match="'many'"):
        run.append({"step": 2, "many": np.zeros(3)})
    assert run.rows() == [{"step": 1}]


FULL_DISK = """
import resource, signal, sys
from ganfast.engine import runfolder
from ganfast.errors import NotWritable
runfolder._open_events = lambda *_: None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = runfolder.RunFolder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
step = refused = 0
while refused < 3:
    step += 1
    try:
        run.append({"step": step, "critic/adversarial": 0.123456789})
    except NotWritable as error:
        assert "log.jsonl" in str(error), error
        refused += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.append({"step": step + 1, "critic/adversarial": 0.5})
print(step)
"""


def test_a_disk_that_fills_up_never_tears_the_log(run: RunFolder) -> None:
    """Writes beyond the size limit are cut short by the kernel as on a full disk; later there is room again."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, run.path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, last - 2), last + 1]


def test_a_killed_run_leaves_whole_rows(run: RunFolder) -> None:
    script = (
        "import sys\nfrom ganfast.engine import runfolder\nrunfolder._open_events = lambda *_: None\n"
        "run = runfolder.RunFolder(sys.argv[1])\n"
        "for step in range(10**9):\n    run.append({'step': step})\n    step == 50 and print('on', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, run.path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    steps = [row["step"] for row in run.rows()]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50


def test_a_torn_last_line_is_passed_over_and_a_damaged_one_before_is_named(run: RunFolder) -> None:
    log = run.path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "cri')
    assert [row["step"] for row in run.rows()] == [1, 2]
    log.write_text('{"step": 1}\n\x00\x00\x00\n{"step": 3}\n')
    with pytest.raises(Damaged, match=r"log\.jsonl, line 2 is not a JSON object"):
        read_rows(run.path)


@pytest.mark.parametrize("line", ['{"step": "x"}', '{"step": null}', '{"step": 2, "nonfinite": {"a": "b"}}', '{"nonfinite": 1}'])
def test_an_object_that_is_no_row_is_named_and_dropped(run: RunFolder, line: str) -> None:
    (run.path / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(Damaged, match=r"log\.jsonl, line 2 is not a JSON object with a number as step"):
        run.rows()
    run.truncate_after(3)
    assert [row["step"] for row in run.rows()] == [1, 3]


def test_what_cannot_be_read_or_removed_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_sample(9, picture(0))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(NotWritable, match=r"cannot remove .*000009\.png: Permission denied"):
        patch.setattr(os, "unlink", refuse)
        patch.setattr(runfolder, "write_atomically", lambda *_: None)
        run.truncate_after(1)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Damaged, match=r"log\.jsonl cannot be read: Permission denied"):
        run.truncate_after(1)


def begun(folder: Path, *more: str) -> None:
    """What a run writes before its first iteration, fails after, and ``more``."""
    with runfolder.removed_if_untrained(folder):
        run = RunFolder.create(folder, CONFIG)
        with runfolder.locked(folder):
            run.truncate_after(0)
            run.save_sample(0, picture(0))
            for name in more:
                run.append({"step": 1}) if name == "log.jsonl" else (folder / name).mkdir()
            run.close()
            raise MemoryError


def test_a_run_that_trained_nothing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        begun(tmp_path / "deep" / "run")
    assert names(tmp_path) == []
    (tmp_path / "mine" / "tensorboard").mkdir(parents=True)
    (tmp_path / "mine" / "tensorboard" / "events").write_text("mine")
    with pytest.raises(MemoryError):
        begun(tmp_path / "mine")
    assert [place.name for place in (tmp_path / "mine").iterdir()] == ["tensorboard"]
    assert (tmp_path / "mine" / "tensorboard" / "events").read_text() == "mine"


@pytest.mark.parametrize("trace", ["log.jsonl", "checkpoints", "nonfinite.json"])
def test_a_run_that_trained_something_stays(tmp_path: Path, trace: str) -> None:
    with pytest.raises(MemoryError):
        begun(tmp_path / "run", trace)
    assert {"config.json", "samples/step-00000000.png", trace} <= set(names(tmp_path / "run"))


def test_a_run_of_another_process_stays(tmp_path: Path) -> None:
    """It began in the same folder a moment before, holds the lock and has trained nothing yet."""
    folder = tmp_path / "run"
    script = (
        "import pathlib, sys\nfrom ganfast.engine import runfolder\nfolder = pathlib.Path(sys.argv[1])\n"
        "runfolder.RunFolder.create(folder, {})\nwith runfolder.locked(folder):\n    print('on', flush=True)\n    input()"
    )
    with pytest.raises(InvalidValue, match="already holds a run"), runfolder.removed_if_untrained(folder):
        other = subprocess.Popen([sys.executable, "-c", script, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "on\n"
        RunFolder.create(folder, CONFIG)
    assert names(folder) == [".lock", "config.json"]
    other.communicate("\n")


def test_a_run_from_before_stays(run: RunFolder) -> None:
    for failing in (lambda: begun(run.path), lambda: (run.path / "absent").read_text()):
        with pytest.raises((InvalidValue, FileNotFoundError)), runfolder.removed_if_untrained(run.path):
            failing()
    assert names(run.path) == ["config.json"]


def test_truncating_goes_back_to_a_step(run: RunFolder) -> None:
    for step in (10, 20, 30, 40):
        run.append({"step": step, "critic/loss": math.nan if step == 20 else 1.0})
        run.save_sample(step, picture(step))
    (run.path / "samples" / "mine.png").write_bytes(b"")
    (run.path / ".curves.png.tmp-1").write_bytes(b"half")
    (run.path / "samples" / ".step-00000050.png.tmp-1").write_bytes(b"half")
    with (run.path / "log.jsonl").open("a") as log:
        log.write('{"step": 50, "critic/lo')
    kept = (run.path / "log.jsonl").read_text().splitlines()[:2]

    run.truncate_after(20)
    assert (run.path / "log.jsonl").read_text().splitlines() == kept
    assert names(run.path / "samples") == ["mine.png", "step-00000010.png", "step-00000020.png"]
    assert not list(run.path.rglob("*.tmp-*"))
    run.append({"step": 21})
    assert [row["step"] for row in run.rows()] == [10, 20, 21]


def test_truncating_an_empty_run_is_fine(run: RunFolder) -> None:
    run.truncate_after(0)
    assert run.rows() == []


def test_truncating_is_atomic(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.append({"step": 1})
    run.append({"step": 2})
    before = (run.path / "log.jsonl").read_bytes()

    def killed(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(NotWritable, match=r"log\.jsonl"):
        run.truncate_after(1)
    assert (run.path / "log.jsonl").read_bytes() == before
    assert not list(run.path.glob("*.tmp-*"))


def test_a_sample_is_named_by_its_step_and_keeps_its_pixels(run: RunFolder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    place = run.save_sample(100, Image.fromarray(pixels))
    assert place == run.path / "samples" / "step-00000100.png"
    with Image.open(place) as saved:
        assert saved.format == "PNG"
        np.testing.assert_array_equal(np.asarray(saved), pixels)


def test_samples_come_in_order_of_steps(run: RunFolder) -> None:
    for step in (200_000_000, 3, 100):
        run.save_sample(step, picture(0))
    assert [place.name for place in sample_pictures(run.path)] == [
        "step-00000003.png",
        "step-00000100.png",
        "step-200000000.png",
    ]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    write_atomically(target, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritable, match=f"cannot write {target}: No space left on device"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_tensorboard_receives_rows_and_pictures(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(1_700_000_000)  # TensorBoard orders event files by the second in their names
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    for step in (1, 2, 3):
        run.append({"step": step, "kimg": 0.1 * step, "critic/loss": 2.0 / step, "note": "text is no scalar"})
    run.save_sample(3, picture(200))
    run.truncate_after(2)
    run.append({"step": 3, "critic/loss": 9.0})
    run.close()

    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"kimg", "critic/loss"}
    assert [(event.step, event.value) for event in events.Scalars("critic/loss")] == [(1, 2.0), (2, 1.0), (3, 9.0)]
    assert events.Tags()["images"] == ["samples"]


def test_without_tensorboard_a_run_is_whole(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run.append({"step": 1})
    run.save_sample(1, picture(1))
    run.close()
    assert names(run.path) == ["config.json", "log.jsonl", "samples", "samples/step-00000001.png"]
    assert not (run.path / "tensorboard").exists()


def test_a_failing_tensorboard_is_given_up_once_and_loses_no_row(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def add_scalar(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(runfolder, "_open_events", lambda *_: Broken())
    with pytest.raises(NotWritable, match="TensorBoard events stop at step 1: No space"):
        run.append({"step": 1, "critic/loss": 1.0})
    run.append({"step": 2, "critic/loss": 1.0})
    assert [row["step"] for row in run.rows()] == [1, 2]
