"""What a run does when something goes wrong in the middle: signals, a full disk, losses that stop being numbers."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganfast import recipes
from ganfast.data import Dataset
from ganfast.engine import checkpoint, loop
from ganfast.engine.runfolder import RunFolder
from ganfast.engine.signals import Interrupts
from ganfast.engine.trainer import Trainer
from ganfast.errors import NonFinite, NotWritable
from ganfast.latent import Noise
from ganfast.recipe import About, Named, Optimizer, Phase, Recipe


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing it takes a second and has tests of its own."""
    monkeypatch.setattr(loop, "write_report", lambda folder: folder)


def pictures() -> Dataset:
    return Dataset("noise", {"real": {"real": np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)}})


def made(out: Path, recipe: Recipe | None = None, **settings: Any) -> tuple[Trainer, RunFolder]:
    torch.manual_seed(0)
    recipe = recipe or recipes.get("dcgan", image_size=16, channels=1, width=4)
    settings = {"batch": 4, "log_every": 1, "tick_every": 100, "checkpoint_every": 2} | settings
    return Trainer(recipe, pictures(), out=out, **settings), RunFolder.create(out, {"recipe": recipe.name})


def troubled(trouble: Any) -> Recipe:
    """DCGAN whose critic's loss is multiplied by ``trouble(batch.z)``."""
    torch.manual_seed(0)
    recipe = recipes.get("dcgan", image_size=16, channels=1, width=4)
    critic, generator = recipe.phases

    def loss(nets: Named, batch: Named) -> dict[str, Tensor]:
        terms: Any = critic.loss(nets, batch)
        return {"adversarial": terms.minimise["adversarial"] * trouble(batch.z)}

    return dataclasses.replace(recipe, phases=(dataclasses.replace(critic, loss=loss), generator))


def at(trainer: Trainer, actions: dict[int, Any]) -> None:
    """Do something when the trainer begins an iteration, each once."""
    step = trainer.step

    def stepped() -> dict[str, Tensor]:
        actions.pop(trainer.steps, lambda: None)()
        return step()

    trainer.step = stepped  # type: ignore[method-assign]


def steps(folder: RunFolder) -> list[int]:
    return [row["step"] for row in folder.rows()]


def newest(out: Path) -> int:
    state = checkpoint.load(out / "checkpoints", warn=pytest.fail)
    found: int = state.scalars["step"]
    return found


# ---- signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_after_the_iteration_it_came_in(tmp_path: Path, name: str) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer, folder = made(tmp_path)
    at(trainer, {2: lambda: signal.raise_signal(signal.Signals[name])})
    assert loop.run(trainer, 9, folder) == name
    assert trainer.steps == newest(tmp_path) == 3 and steps(folder) == [1, 2, 3]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_interrupt_between_rows_leaves_one_and_a_picture_of_where_it_stands(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path, log_every=100)
    at(trainer, {2: lambda: signal.raise_signal(signal.SIGTERM)})
    loop.run(trainer, 900, folder)
    (row,) = folder.rows()
    assert row["step"] == 3 and np.isfinite(row["critic/adversarial"])
    assert [file.name for file in sorted((tmp_path / "samples").iterdir())] == ["step-00000000.png", "step-00000003.png"]


@pytest.mark.parametrize(("log_every", "tick_every"), [(1, 2), (1, 3), (2, 3), (4, 3), (2, 2), (3, 2)])
def test_what_an_interrupt_left_is_taken_away_again(tmp_path: Path, log_every: int, tick_every: int) -> None:
    """Rows and pictures of a run that goes on are those of one that was never interrupted, wherever its intervals fall."""

    def ran(out: Path, *stops: int) -> tuple[list[int], dict[str, bytes]]:
        trainer, folder = made(out, log_every=log_every, tick_every=tick_every)
        before: dict[str, Any] = {}
        for until in (*stops, 0):
            loop.rewind(folder, trainer.steps, before)
            at(trainer, {until - 1: lambda: signal.raise_signal(signal.SIGINT)})
            loop.run(trainer, 7, folder)
            before = {"intervals": loop.intervals(trainer.settings, 7), "steps": 7}
        return steps(folder), {file.name: file.read_bytes() for file in (out / "samples").iterdir()}

    assert ran(tmp_path / "stopped", 2, 3, 4) == ran(tmp_path / "straight")


def test_a_picture_that_cannot_be_taken_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, folder = made(tmp_path)
    folder.save_sample(3, loop.picture(trainer))

    def refused(place: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    monkeypatch.setattr(folder, "truncate_after", lambda step: None)
    with pytest.raises(NotWritable, match=r"cannot remove .*step-00000003\.png: Permission denied"):
        loop.rewind(folder, 3, {"intervals": {"log_every": 1, "tick_every": 2}, "steps": 9})


def test_a_signal_before_the_first_iteration_leaves_something_to_resume(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    folder.save_sample = lambda *_: signal.raise_signal(signal.SIGTERM)  # type: ignore[method-assign,assignment]
    assert loop.run(trainer, 9, folder) == "SIGTERM"
    assert trainer.steps == newest(tmp_path) == 0


def test_an_interrupt_in_the_middle_of_a_save_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, folder = made(tmp_path)
    write, interrupts = checkpoint.write_synced, [signal.SIGINT]

    def interrupted(place: Path, data: bytes) -> None:
        write(place, data)
        for sent in interrupts[:1]:
            interrupts.clear()
            signal.raise_signal(sent)

    monkeypatch.setattr(checkpoint, "write_synced", interrupted)
    assert loop.run(trainer, 9, folder) == "SIGINT"
    assert newest(tmp_path) == 2 and not list((tmp_path / "checkpoints").glob("*.tmp-*"))


@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_second_interrupt_in_the_middle_of_a_save_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 2, folder)
    real, calls = checkpoint.write_synced, iter(range(9))

    def interrupted(place: Path, data: bytes) -> None:
        if next(calls) == write:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        real(place, data)

    monkeypatch.setattr(checkpoint, "write_synced", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(trainer, 9, folder)
    monkeypatch.undo()
    assert newest(tmp_path) == 2
    trainer.sweep()
    assert sorted(place.name for place in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-00000002"]
    trainer.load_newest(pytest.fail)
    assert trainer.steps == 2


def test_a_terminate_after_an_interrupt_is_no_second_interrupt() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_run_in_another_thread_leaves_the_signals_alone(tmp_path: Path) -> None:
    import threading

    trainer, folder = made(tmp_path)
    before, ended = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: ended.append(loop.run(trainer, 2, folder)))
    thread.start()
    thread.join()
    assert ended == [""] and trainer.steps == 2 and signal.getsignal(signal.SIGINT) == before


# ---- a disk that fills up


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_noted_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint before it fills up stays; there is room again later, and saves are made again."""
    trainer, folder = made(tmp_path, checkpoint_every=1)
    write = checkpoint.write_synced

    def fill() -> None:
        monkeypatch.setattr(checkpoint, "write_synced", full)

    def empty() -> None:
        assert newest(tmp_path) == 2
        monkeypatch.setattr(checkpoint, "write_synced", write)

    at(trainer, {2: fill, 4: empty})
    assert loop.run(trainer, 6, folder) == ""
    assert trainer.steps == newest(tmp_path) == 6 and steps(folder) == [1, 2, 3, 4, 5, 6]
    notes = [line for line in capsys.readouterr().err.splitlines() if "No space left" in line]
    assert len(notes) == 2 and all("cannot write checkpoint" in n and n.endswith("training goes on without it") for n in notes)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, folder = made(tmp_path)

    def refuse(*_: Any) -> None:
        raise NotWritable(f"cannot write {tmp_path / 'log.jsonl'}: No space left on device")

    folder.append = refuse  # type: ignore[method-assign,assignment]
    folder.save_sample = refuse  # type: ignore[method-assign,assignment]
    assert loop.run(trainer, 3, folder) == "" and newest(tmp_path) == 3
    assert capsys.readouterr().err.count("training goes on without it") == 5  # the first picture, three rows, the last picture


# ---- losses that are no numbers


def test_a_bad_draw_is_rolled_back_once_and_drawn_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN for what iterations 3 to 5 draw: back to the checkpoint at 2, and on with other draws, to the end."""
    drawn: list[Tensor] = []

    def record(z: Tensor) -> float:
        drawn.append(z.clone())
        return 1.0

    trainer, folder = made(tmp_path / "a", troubled(record))
    loop.run(trainer, 6, folder)
    bad = drawn[3:6]  # one critic pass an iteration
    seen: list[Tensor] = []

    def trouble(z: Tensor) -> float:
        seen.append(z.clone())
        return float("nan") if any(torch.equal(z, b) for b in bad) else 1.0

    trainer, folder = made(tmp_path / "b", troubled(trouble), checkpoint_every=3)
    assert loop.run(trainer, 8, folder) == ""
    assert trainer.steps == newest(tmp_path / "b") == 8 and trainer.rollbacks == 1
    assert steps(folder) == [1, 2, 3, 4, 5, 6, 7, 8]  # what was rolled back is no longer in the log
    assert all(np.isfinite(row["critic/adversarial"]) and row["images_per_second"] >= 0 for row in folder.rows())
    again = seen[7:10]  # six passes, the diagnosis, and then iterations 3 to 5 anew
    assert not any(torch.equal(z, b) for z, b in zip(again, bad, strict=True))
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "back to iteration" in line]
    assert "phase 'critic': adversarial is nan" in note and note.endswith("back to iteration 3, with other random draws")
    found = json.loads((tmp_path / "b" / "nonfinite.json").read_text())
    assert (found["step"], found["phase"], found["terms"]) == (5, "critic", {"adversarial": "nan"})


def test_a_rolled_back_run_resumes_with_the_draws_it_changed_to(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 2, folder)
    trainer.roll_back(pytest.fail)
    loop.run(trainer, 4, folder)
    straight = {name: value.clone() for name, value in trainer.networks.G.state_dict().items()}
    loop.run(trainer, 6, folder)
    again, folder = Trainer(trainer.recipe, trainer.data, out=tmp_path, batch=4), RunFolder(tmp_path)
    again.load(checkpoint.read(tmp_path / "checkpoints" / "step-00000004"))
    assert again.rollbacks == 1
    assert all(torch.equal(value, straight[name]) for name, value in again.networks.G.state_dict().items())


def test_trouble_that_stays_ends_the_run_after_one_way_back(tmp_path: Path) -> None:
    trainer: Trainer
    trainer, folder = made(tmp_path, troubled(lambda z: float("nan") if trainer.steps >= 4 else 1.0), checkpoint_every=4)
    with pytest.raises(NonFinite, match=r"iteration 6, phase 'critic': adversarial is nan"):
        loop.run(trainer, 20, folder)
    assert trainer.rollbacks == 1
    assert newest(tmp_path) == 4 and (tmp_path / "nonfinite.json").exists()
    healthy = checkpoint.load(tmp_path / "checkpoints", warn=pytest.fail).tensors
    assert all(tensor.isfinite().all() for tensor in healthy.values() if tensor.is_floating_point())


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path, troubled(lambda z: float("nan")), checkpoint_every=100)
    with pytest.raises(NonFinite, match="iteration 2, phase 'critic'"):
        loop.run(trainer, 20, folder)
    assert trainer.rollbacks == 0
    recipe = troubled(lambda z: float("nan"))
    with pytest.raises(NonFinite):
        loop.run(Trainer(recipe, pictures(), batch=4), 20)


def test_rolling_back_passes_over_a_damaged_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    armed = [True]
    trainer: Trainer
    trainer, folder = made(tmp_path, troubled(lambda z: float("nan") if armed and trainer.steps >= 4 else 1.0))

    def damage() -> None:
        (tmp_path / "checkpoints" / "step-00000006" / "state.safetensors").write_bytes(b"")

    at(trainer, {6: damage})
    roll_back = trainer.roll_back

    def recovered(warn: Any) -> None:
        armed.clear()
        roll_back(warn)

    trainer.roll_back = recovered  # type: ignore[method-assign]
    loop.run(trainer, 8, folder)
    assert trainer.steps == newest(tmp_path) == 8 and steps(folder) == list(range(1, 9))
    told = capsys.readouterr().err
    assert "step-00000006/state.safetensors is damaged" in told and "back to iteration 4" in told


# ---- rhythm


def test_rows_pictures_and_checkpoints_come_when_they_should(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path, log_every=3, tick_every=4, checkpoint_every=5, keep=9)
    loop.run(trainer, 11, folder)
    assert steps(folder) == [3, 6, 9, 11]
    assert sorted(int(file.stem[5:]) for file in (tmp_path / "samples").iterdir()) == [0, 4, 8, 11]
    assert sorted(int(place.name[5:]) for place in checkpoint.saves(tmp_path / "checkpoints")) == [5, 10, 11]


def test_a_row_has_everything_by_name(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path, accumulate=2)
    loop.run(trainer, 3, folder)
    row = folder.rows()[-1]
    assert set(row) == {
        *("step", "kimg", "seconds", "images_per_second", "skipped"),
        *("critic/adversarial", "critic/grad_norm", "generator/adversarial", "generator/grad_norm", "D(real)", "D(fake)"),
    }
    assert row["step"] == 3 and row["kimg"] == 3 * 2 * 4 / 1000 and row["skipped"] == 0
    assert row["images_per_second"] > 0 and 0 < row["D(real)"] < 1 and 0 < row["D(fake)"] < 1
    assert row["seconds"] >= folder.rows()[0]["seconds"]


def test_a_run_that_is_over_already_does_nothing(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 2, folder)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file() and "tensorboard" not in str(file)}
    for until in (2, 1, 0):
        assert loop.run(trainer, until, folder) == "" and trainer.steps == 2
    assert before == {file: file.read_bytes() for file in before}


def test_tied_weights_are_saved_and_resumed(tmp_path: Path) -> None:
    """Two names for one tensor, as language models and some critics have them."""

    def recipe() -> Recipe:
        torch.manual_seed(1)
        D = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        D[1].weight = D[0].weight
        return Recipe(
            name="tied",
            networks={"D": D},
            phases=(
                Phase("judge", updates=("D",), reads=("real",), loss=lambda nets, batch: nets.D(batch.real).square().mean()),
            ),
            latent=Noise(2),
            optimizers={"D": Optimizer("Adam", lr=0.1)},
            ema={"D": 0.5},
            about=About("none", "none", "none"),
        )

    points = Dataset("points", {"real": {"real": np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)}})
    first = Trainer(recipe(), points, batch=4, out=tmp_path)
    first.step()
    first.save()
    second = Trainer(recipe(), points, batch=4, out=tmp_path)
    second.load_newest(pytest.fail)
    for trainer in (first, second):
        trainer.step()
    assert second.networks.D[0].weight is second.networks.D[1].weight
    assert all(torch.equal(a, b) for a, b in zip(first.networks.D.parameters(), second.networks.D.parameters(), strict=True))
    assert os.path.exists(tmp_path / "checkpoints" / "latest")


def test_a_lazy_phases_terms_stand_in_the_rows_between(tmp_path: Path) -> None:
    recipe = recipes.get("dcgan", image_size=16, channels=1, width=4)
    lazy = dataclasses.replace(recipe.phases[0], name="lazy", every=4)
    trainer, folder = made(tmp_path, dataclasses.replace(recipe, phases=(*recipe.phases, lazy)), log_every=4)
    loop.run(trainer, 8, folder)
    assert steps(folder) == [4, 8] and all("lazy/adversarial" in row for row in folder.rows())


@pytest.mark.parametrize("group", ["real", "a"])
def test_points_with_a_preview_of_their_own_are_drawn(tmp_path: Path, group: str) -> None:
    data = Dataset("plane", {group: {"real": np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)}})
    recipe = recipes.get("gan", image_size=0, channels=2, width=4)
    recipe = dataclasses.replace(recipe, preview=lambda nets, inputs: {"A": nets.G(inputs.z), "B": -nets.G(inputs.z)})
    trainer = Trainer(recipe, data, out=tmp_path, batch=4)
    loop.run(trainer, 1, RunFolder.create(tmp_path, {"recipe": "gan"}))
    assert len(list((tmp_path / "samples").iterdir())) == 2


def test_points_of_other_dimensions_train_without_pictures(tmp_path: Path) -> None:
    data = Dataset("space", {"real": {"real": np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)}})
    recipe = recipes.get("gan", image_size=0, channels=3, width=4)
    trainer = Trainer(recipe, data, out=tmp_path, batch=4, checkpoint_every=1)
    folder = RunFolder.create(tmp_path, {"recipe": "gan"})
    loop.run(trainer, 2, folder)
    assert steps(folder) == [1, 2] and not (tmp_path / "samples").exists()
