"""Training from Python: data and recipes as names or as objects, and runs that go on as they began or say why not."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ganfast
from ganfast import api, cli, recipes
from ganfast.engine import checkpoint, loop
from ganfast.engine.runfolder import locked
from ganfast.errors import Damaged, InvalidData, InvalidType, InvalidValue, NotFound, NotWritable

SMALL: dict[str, Any] = {"width": 4, "batch": 4}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing it takes a second and has tests of its own."""
    monkeypatch.setattr(loop, "write_report", lambda folder: folder)


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)


@pytest.fixture
def data(tmp_path: Path, images: Any) -> Path:
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(24) % 3)
    return tmp_path / "data.npz"


def weights(trainer: ganfast.Trainer) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.clone() for name, net in trainer.networks.items() for key, value in net.state_dict().items()}


def equal(a: ganfast.Trainer, b: ganfast.Trainer) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---- what there is to hold


def test_arrays_tensors_paths_and_open_data_train_alike(data: Path, images: Any) -> None:
    sources = [
        str(data),
        data,
        (images, np.arange(24) % 3),
        (torch.from_numpy(images), torch.arange(24) % 3),
        ganfast.data.open_dataset(data),
    ]
    first, *others = [ganfast.train("cgan", source, steps=2, **SMALL).trainer for source in sources]
    assert first.steps == 2 and all(equal(first, other) for other in others)
    assert not equal(first, ganfast.train("cgan", data, steps=2, seed=1, **SMALL).trainer)


def test_a_run_says_what_it_left(tmp_path: Path, data: Path) -> None:
    run = ganfast.train("dcgan", data, steps=3, out=tmp_path / "run", log_every=1, **SMALL)
    assert run.out == tmp_path / "run" and run.report == tmp_path / "run" / "report.html"
    assert (run.steps, run.interrupted, run.trainer.steps) == (3, "", 3)
    assert run.log == [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in run.log] == [1, 2, 3]
    bare = ganfast.train("dcgan", data, steps=3, **SMALL)
    assert bare.steps == 3 and ganfast.Trainer("dcgan", data, **SMALL).run(2).steps == 2
    assert (bare.out, bare.report, bare.log, bare.interrupted) == (None, None, [], "") and equal(bare.trainer, run.trainer)
    assert run.trainer.sample(2).shape == (2, 16, 16, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.steps = 4  # type: ignore[misc]


def test_step_by_step_is_the_same_as_a_run(tmp_path: Path, data: Path) -> None:
    by_hand = ganfast.Trainer("dcgan", data, **SMALL)
    for _ in range(4):
        losses = by_hand.step()
    assert {"critic/adversarial", "generator/adversarial", "D(real)", "D(fake)"} <= set(losses)
    in_parts = ganfast.Trainer("dcgan", data, out=tmp_path / "run", **SMALL)
    assert in_parts.run(1).steps == 1 and in_parts.run(0).steps == 1 and in_parts.run(3).steps == 4
    assert equal(by_hand, in_parts)
    with pytest.raises(InvalidValue, match="steps: expected at least 0, got -1"):
        in_parts.run(-1)


def test_the_configuration_is_resolved_and_its_command_repeats_the_run(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**SMALL, "flip": True, "lr": 1e-3, "seed": 3, "decay": "linear", "filter": "box", "image_size": 16, "keep": 5}
    first = ganfast.train("wgan-gp", data, steps=4, out=tmp_path / "run with a space", **options)
    config = json.loads((tmp_path / "run with a space" / "config.json").read_text())
    assert config["engine"] | {"device": "cpu", "precision": "fp32", "decay_steps": 4, "seed": 3} == config["engine"]
    assert config["options"]["width"] == 4 and config["options"]["critic_steps"] == 5 and config["options"]["image_size"] == 16
    assert config["data"]["source"] == str(data) and config["data"]["rows"] == {"real": 24} and config["steps"] == 4
    assert set(config["versions"]) == {"ganfast", "torch", "numpy", "python"}
    words = shlex.split(config["command"])
    assert words[:3] == ["ganfast", "train", "wgan-gp"] and words[words.index("--out") + 1] == str(tmp_path / "run with a space")
    words[words.index("--out") + 1] = str(tmp_path / "again")
    with pytest.raises(SystemExit) as end:
        cli.main(words[1:])
    assert end.value.code == 0
    again = ganfast.Trainer.resume(tmp_path / "again")
    assert (
        equal(first.trainer, again)
        and again.config["engine"] == config["engine"]
        and again.config["options"] == config["options"]
    )


# ---- going on


def test_a_run_with_linear_decay_goes_on_as_if_it_had_not_stopped(tmp_path: Path, data: Path) -> None:
    """The step sizes of the second half depend on the length of the whole run, which a resumed one must still know."""
    straight = ganfast.train("dcgan", data, steps=8, decay="linear", **SMALL).trainer
    out = tmp_path / "run"
    ganfast.train("dcgan", data, steps=8, out=out, decay="linear", checkpoint_every=2, keep=4, **SMALL)
    shutil.rmtree(out / "checkpoints" / "step-00000008")
    resumed = ganfast.train("dcgan", data, steps=8, out=out, resume=True)
    assert resumed.steps == 8 and equal(resumed.trainer, straight)
    assert not equal(straight, ganfast.train("dcgan", data, steps=8, **SMALL).trainer)


def test_a_recipe_object_that_wants_decay_gets_the_length_of_the_run(data: Path) -> None:
    def recipe() -> ganfast.Recipe:
        torch.manual_seed(0)
        made = recipes.get("dcgan", image_size=16, channels=1, width=4)
        return dataclasses.replace(made, defaults={"decay": "linear"})

    run = ganfast.train(recipe(), data, steps=8, batch=4)
    assert run.trainer.settings.decay == "linear" and run.trainer.settings.decay_steps == 8


def test_an_interrupted_run_shows_where_it_stands_and_goes_on_without_a_trace(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare: dict[str, Any] = {**SMALL, "log_every": 3, "tick_every": 5, "steps": 7}
    straight = ganfast.train("dcgan", data, out=tmp_path / "straight", **rare)
    step = ganfast.Trainer.step

    def interrupted(self: ganfast.Trainer) -> Any:
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(ganfast.Trainer, "step", interrupted)
        stopped = ganfast.train("dcgan", data, out=tmp_path / "stopped", **rare)
    assert stopped.interrupted == "SIGINT" and [row["step"] for row in stopped.log] == [3, 4]
    assert sorted(file.name for file in (tmp_path / "stopped" / "samples").iterdir())[1:] == ["step-00000004.png"]
    resumed = ganfast.train("dcgan", data, out=tmp_path / "stopped", resume=True)
    assert [row["step"] for row in resumed.log] == [row["step"] for row in straight.log] == [3, 6, 7]
    pictures = [
        {file.name: file.read_bytes() for file in (run / "samples").iterdir()} for run in (resumed.out, straight.out) if run
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 3


def test_an_explicit_older_checkpoint(tmp_path: Path, data: Path) -> None:
    """The run goes on from there: what came later is forgotten by the log, the pictures and the checkpoints alike."""
    out = tmp_path / "run"
    first = ganfast.train("dcgan", data, steps=6, out=out, checkpoint_every=2, log_every=1, keep=9, **SMALL)
    older = ganfast.Trainer.resume(out / "checkpoints" / "step-00000002")
    assert older.steps == 2 and len(checkpoint.saves(out / "checkpoints")) == 3  # looking at it changes nothing
    assert ganfast.Trainer.resume(out / "checkpoints" / "latest").steps == 6
    run = older.run(1)
    assert [row["step"] for row in run.log] == [1, 2, 3]
    assert [place.name for place in checkpoint.saves(out / "checkpoints")] == ["step-00000003", "step-00000002"]
    assert equal(ganfast.train("dcgan", data, steps=6, out=out, resume=True).trainer, first.trainer)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path, data: Path) -> None:
    out, told = tmp_path / "run", list[str]()
    ganfast.Trainer("dcgan", data, out=out, seed=5, **SMALL)  # the folder is made, and then the machine goes down
    with pytest.raises(InvalidValue, match="already holds a run"):
        ganfast.train("dcgan", data, steps=2, out=out, **SMALL)
    with pytest.raises(NotFound, match="there is no checkpoint in"):
        ganfast.Trainer.resume(out)
    again = ganfast.Trainer.resume(out, begin_again=True, warn=told.append)
    assert told == [f"{out} has no checkpoint yet: it begins again at iteration 0"] and again.steps == 0
    assert equal(again, ganfast.Trainer("dcgan", data, seed=5, **SMALL))
    resumed = ganfast.train("dcgan", data, steps=2, out=out, resume=True)
    assert equal(resumed.trainer, ganfast.train("dcgan", data, steps=2, seed=5, **SMALL).trainer)


def test_what_was_given_as_an_object_is_asked_for_again(tmp_path: Path, images: Any) -> None:
    def recipe() -> ganfast.Recipe:
        torch.manual_seed(0)
        return recipes.get("dcgan", image_size=16, channels=1, width=4)

    ganfast.train("dcgan", images, steps=2, out=tmp_path / "data", **SMALL)
    config = json.loads((tmp_path / "data" / "config.json").read_text())
    assert config["command"] == config["resume"] == ""
    with pytest.raises(InvalidValue, match="given as an object: pass data= to resume it"):
        ganfast.Trainer.resume(tmp_path / "data")
    assert ganfast.Trainer.resume(tmp_path / "data", data=images).steps == 2
    assert ganfast.train("dcgan", images, steps=3, out=tmp_path / "data", resume=True).steps == 3

    straight = ganfast.train(recipe(), images, steps=4, batch=4).trainer
    ganfast.train(recipe(), images, steps=2, out=tmp_path / "recipe", batch=4)
    with pytest.raises(InvalidValue, match="recipe object 'dcgan': pass recipe= to resume it"):
        ganfast.Trainer.resume(tmp_path / "recipe", data=images)
    assert equal(ganfast.train(recipe(), images, steps=4, out=tmp_path / "recipe", resume=True).trainer, straight)
    torch.manual_seed(0)
    wider = recipes.get("dcgan", image_size=16, channels=1, width=8)
    with pytest.raises(Damaged, match="does not fit the"):
        ganfast.Trainer.resume(tmp_path / "recipe", recipe=wider, data=images)


def test_data_that_changed_are_refused_and_data_that_moved_are_not(tmp_path: Path, data: Path, images: Any) -> None:
    out = tmp_path / "run"
    ganfast.train("dcgan", data, steps=2, out=out, **SMALL)
    moved = tmp_path / "elsewhere" / "data.npz"
    moved.parent.mkdir()
    data.rename(moved)
    with pytest.raises(NotFound, match=r"no file or folder .*data\.npz"):
        ganfast.Trainer.resume(out)
    run = ganfast.train("dcgan", moved, steps=3, out=out, resume=True)
    assert run.steps == 3 and ganfast.Trainer.resume(out).steps == 3  # it knows now where they are
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    np.savez(moved, images=changed, labels=np.arange(24) % 3)
    with pytest.raises(InvalidData, match=r"run was trained on 'data\.npz', and the contents of 'data\.npz' differ"):
        ganfast.Trainer.resume(out)
    with pytest.raises(InvalidData, match="the contents of 'toy:ring8' differ"):
        ganfast.train("dcgan", "toy:ring8", steps=4, out=out, resume=True)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_run_folder_that_moved_goes_on_where_it_is(tmp_path: Path, data: Path) -> None:
    ganfast.train("dcgan", data, steps=2, out=tmp_path / "old", **SMALL)
    (tmp_path / "old").rename(tmp_path / "new")
    run = ganfast.train("dcgan", data, steps=3, out=tmp_path / "new", resume=True)
    assert run.out == tmp_path / "new" and not (tmp_path / "old").exists()
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["out"] == str(tmp_path / "new") and str(tmp_path / "old") not in config["resume"]


@pytest.mark.parametrize(
    "option",
    [
        *({"batch": 8}, {"seed": 1}, {"width": 8}, {"lr": 0.1}, {"image_size": 8}, {"channels": 3}, {"filter": "box"}),
        *({"flip": True}, {"precision": "bf16"}, {"decay": "linear"}, {"decay_steps": 7}, {"accumulate": 2}, {"latent_dim": 3}),
    ],
    ids=str,
)
def test_a_run_that_goes_on_keeps_its_configuration(tmp_path: Path, data: Path, option: dict[str, Any]) -> None:
    ganfast.train("dcgan", data, steps=1, out=tmp_path / "run", **SMALL)
    (name,) = option
    with pytest.raises(InvalidValue, match=rf"^{name}: the run in .*run has .*, got {option[name]}; a run that goes on keeps"):
        ganfast.Trainer.resume(tmp_path / "run", **option)


def test_options_may_be_repeated_and_some_may_change(tmp_path: Path, data: Path) -> None:
    given: dict[str, Any] = {**SMALL, "precision": "auto", "device": "auto", "image_size": 16, "filter": "lanczos", "lr": 1e-3}
    ganfast.train("dcgan", data, steps=1, out=tmp_path / "run", **given)
    again = ganfast.Trainer.resume(tmp_path / "run", **given)
    assert again.steps == 1
    other = ganfast.Trainer.resume(tmp_path / "run", log_every=3, tick_every=4, checkpoint_every=5, keep=6, device="cpu")
    assert (other.settings.log_every, other.settings.tick_every) == (3, 4)
    assert (other.settings.checkpoint_every, other.settings.keep) == (5, 6)
    with pytest.raises(InvalidValue, match="has no option 'bach'; did you mean 'batch'"):
        ganfast.Trainer.resume(tmp_path / "run", bach=4)
    with pytest.raises(InvalidValue, match="holds a run of 'dcgan', not of 'gan'"):
        ganfast.train("gan", data, steps=2, out=tmp_path / "run", resume=True)


def test_nothing_to_resume(tmp_path: Path, data: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "absent", tmp_path / "empty", tmp_path):
        with pytest.raises(NotFound, match=r"absent|no run in"):
            ganfast.Trainer.resume(place)
        with pytest.raises(NotFound):
            ganfast.train("dcgan", data, steps=1, out=place, resume=True)
    with pytest.raises(InvalidValue, match="expected the run's folder as out"):
        ganfast.train("dcgan", data, steps=1, resume=True)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["data.npz", "empty"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": "dcgan"}', "\x00\xff", '{"recipe"'])
def test_a_damaged_configuration_is_named(tmp_path: Path, data: Path, text: str) -> None:
    ganfast.train("dcgan", data, steps=1, out=tmp_path / "run", **SMALL)
    (tmp_path / "run" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Damaged, match=r"config\.json"):
        ganfast.Trainer.resume(tmp_path / "run")


@pytest.mark.parametrize("missing", ["data.digest", "data.points", "data", "engine.seed", "engine.batch", "given", "options"])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_configuration_lacks_is_named(tmp_path: Path, data: Path, missing: str, training: bool) -> None:
    ganfast.train("dcgan", data, steps=1, out=tmp_path / "run", **SMALL)
    place = tmp_path / "run" / "config.json"
    config = json.loads(place.read_text())
    *section, key = missing.split(".")
    del (config[section[0]] if section else config)[key]
    place.write_text(json.dumps(config))
    with pytest.raises(Damaged, match=rf"config\.json has no '{missing}'"):
        ganfast.Trainer.resume(tmp_path / "run", training=training)
    place.write_text(json.dumps({**config, "recipe": "dcgan", "options": {}, "given": {}, "data": [], "engine": {}}))
    with pytest.raises(Damaged, match=r"config\.json: expected 'data' to be a JSON object, got \[\]"):
        ganfast.Trainer.resume(tmp_path / "run", training=training)


def test_a_damaged_checkpoint_falls_back_and_ends_the_same(tmp_path: Path, data: Path) -> None:
    out, told = tmp_path / "run", list[str]()
    first = ganfast.train("dcgan", data, steps=6, out=out, checkpoint_every=2, log_every=1, **SMALL)
    tensors = out / "checkpoints" / "step-00000006" / "state.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[len(damaged) // 2] ^= 16
    tensors.write_bytes(damaged)
    again = ganfast.Trainer.resume(out, warn=told.append)
    assert again.steps == 4 and str(tensors) in told[0] and "falling back" in told[0]
    run = again.run(2)
    assert equal(run.trainer, first.trainer) and [row["step"] for row in run.log] == [1, 2, 3, 4, 5, 6]
    for place in checkpoint.saves(out / "checkpoints"):
        (place / "state.json").unlink()
    with pytest.raises(Damaged, match=r"every checkpoint in .* is damaged"):
        ganfast.Trainer.resume(out, warn=told.append)


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path, data: Path) -> None:
    trainer = ganfast.Trainer("dcgan", data, out=tmp_path / "run", **SMALL)
    trainer.step()
    state = checkpoint.read(trainer.save())
    before = weights(trainer)
    moments = next(name for name in state.tensors if name.startswith("optimizers.D.0.exp_avg"))
    for tensors in (
        {**state.tensors, "networks.D.extra": torch.zeros(1)},
        {name: value for name, value in state.tensors.items() if "G" not in name},
        {**state.tensors, moments: torch.zeros(3, 3)},
        {**state.tensors, "optimizers.E.0.exp_avg": torch.zeros(1)},
        {**state.tensors, "optimizers.D.99.step": torch.zeros(1)},
    ):
        with pytest.raises(Damaged, match="the checkpoint does not fit the"):
            trainer.load(checkpoint.State({name: torch.zeros_like(t) for name, t in tensors.items()}, state.scalars))
        assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    with pytest.raises(Damaged, match="expected a checkpoint of recipe 'dcgan', format 1, got one of 'gan', format 1"):
        trainer.load(checkpoint.State(state.tensors, {**state.scalars, "recipe": "gan"}))
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.tensors.items()}
    for key in ("step", "rollbacks", "sampled", "skipped"):
        for scalars in ({k: v for k, v in state.scalars.items() if k != key}, {**state.scalars, key: "x"}):
            with pytest.raises(Damaged, match=f"expected '{key}' to be a whole number"):
                trainer.load(checkpoint.State(zeros, scalars))
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_save_is_of_the_state_as_it_is(tmp_path: Path, data: Path) -> None:
    """Also where the same iteration is saved already: with weights set by hand, or by another run in the same folder."""
    trainer = ganfast.Trainer("dcgan", data, out=tmp_path / "run", **SMALL)
    trainer.step()
    first = trainer.save()
    assert trainer.save() == first
    with torch.no_grad():
        trainer.networks.G.get_parameter("layers.0.weight").fill_(3)
    state = checkpoint.read(trainer.save())
    assert (state.tensors["networks.G.layers.0.weight"] == 3).all()
    assert equal(ganfast.Trainer.resume(tmp_path / "run"), trainer)
    recipe = recipes.get("dcgan", image_size=16, channels=1, width=4)
    other = ganfast.engine.trainer.Trainer(recipe, ganfast.data.open_dataset(data), out=tmp_path / "run", batch=4, seed=1)
    other.step()
    assert checkpoint.read(other.save()).scalars["settings"]["seed"] == 1
    assert len(checkpoint.saves(tmp_path / "run" / "checkpoints")) == 1


def test_looking_at_a_run_that_is_going_on_disturbs_nothing(tmp_path: Path, data: Path) -> None:
    """Sampling beside a live run: its half-written save is left alone, as is everything else."""
    out = tmp_path / "run"
    ganfast.train("dcgan", data, steps=2, out=out, **SMALL)
    half = out / "checkpoints" / "step-00000004.tmp-1"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    looking = ganfast.Trainer.resume(out)
    looking.sample(3)
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    looking.run(1)
    assert not half.exists()


# ---- refusals


@pytest.mark.parametrize(
    ("recipe", "options", "error", "message"),
    [
        ("dcgam", {}, InvalidValue, "no recipe is called 'dcgam'; did you mean 'dcgan'"),
        (3, {}, InvalidType, "expected a recipe's name or a Recipe, got int"),
        ("dcgan", {"widht": 4}, InvalidValue, "recipe 'dcgan' has no option 'widht'; did you mean 'width'"),
        ("dcgan", {"width": "4"}, InvalidType, "option 'width': expected int, got '4'"),
        ("dcgan", {"batch": 2.5}, InvalidType, "batch: expected int, got 2.5"),
        ("dcgan", {"batch": 0}, InvalidValue, "batch: expected at least 1, got 0"),
        ("dcgan", {"image_size": 0}, InvalidValue, "image_size"),
        ("dcgan", {"device": "cuda:99"}, ganfast.errors.Unavailable, "'cuda:99' was asked for"),
        ("cyclegan", {}, InvalidData, "recipe 'cyclegan' needs 'a', and data 'data.npz' has only real, labels"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path, data: Path, recipe: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    for make in (ganfast.Trainer, lambda *a, **k: ganfast.train(*a, steps=1, **k)):
        with pytest.raises(error, match=message):
            make(recipe, data, out=tmp_path / "deep" / "run", **options)
    assert not (tmp_path / "deep").exists()


def test_more_refusals(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InvalidValue, match="steps: expected at least 0, got -1"):
        ganfast.train("dcgan", data, steps=-1, out=tmp_path / "run")
    for steps in ("3", 3.0):
        with pytest.raises(InvalidType, match=rf"train: steps: expected an integer, got {steps!r}"):
            ganfast.train("dcgan", data, steps=steps, out=tmp_path / "run")  # type: ignore[arg-type]
        with pytest.raises(InvalidType, match=rf"run: steps: expected an integer, got {steps!r}"):
            ganfast.Trainer("dcgan", data, **SMALL).run(steps)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(NotWritable, match=r"expected a folder, and .*file is a file"):
            ganfast.train("dcgan", data, steps=1, out=out, **SMALL)
    recipe = recipes.get("dcgan", image_size=16, channels=1, width=4)
    with pytest.raises(InvalidValue, match="the engine has no option 'width'"):
        ganfast.Trainer(recipe, data, width=4)
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "run").exists()


def test_a_command_is_told_only_where_there_is_one(images: Any) -> None:
    assert api.command(ganfast.Trainer("dcgan", images, **SMALL).config, 3) == ""


def test_two_trainers_do_not_share_a_folder(tmp_path: Path, data: Path) -> None:
    first = ganfast.Trainer("dcgan", data, out=tmp_path / "run", **SMALL)
    first.run(1)
    second = ganfast.Trainer.resume(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(NotWritable, match="another process is training in"):
        second.run(1)
    assert second.run(1).steps == 2  # let go of with the block


def test_a_run_is_sampled_where_its_data_are_not(tmp_path: Path, data: Path) -> None:
    trained = ganfast.train("dcgan", data, steps=2, out=tmp_path / "run", **SMALL).trainer
    data.unlink()
    with pytest.raises(NotFound, match=r"data\.npz"):
        ganfast.Trainer.resume(tmp_path / "run")
    for_samples = ganfast.Trainer.resume(tmp_path / "run", training=False)
    assert np.array_equal(for_samples.sample(5, seed=1), trained.sample(5, seed=1))
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for train in (for_samples.step, for_samples.save, lambda: for_samples.run(1), lambda: for_samples.run(0)):
        with pytest.raises(InvalidValue, match="was opened for samples alone: resume it without training=False"):
            train()
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    arrays = ganfast.Trainer("dcgan", np.zeros((8, 16, 16, 1), np.uint8), out=tmp_path / "array", **SMALL)
    arrays.save()
    assert ganfast.Trainer.resume(tmp_path / "array", training=False).sample(2).shape == (2, 16, 16, 1)


def test_a_resumed_run_keeps_its_length_and_never_goes_back(tmp_path: Path, data: Path) -> None:
    ganfast.train("dcgan", data, steps=3, out=tmp_path / "run", **SMALL)
    assert ganfast.train("dcgan", data, out=tmp_path / "run", resume=True).steps == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 3
    with pytest.raises(InvalidValue, match="at iteration 3 already: expected steps of at least that, got 2"):
        ganfast.train("dcgan", data, steps=2, out=tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 3


def test_nothing_is_trained_at_a_step_size_of_zero(tmp_path: Path, data: Path) -> None:
    ganfast.train("dcgan", data, steps=3, out=tmp_path / "run", decay="linear", **SMALL)
    with pytest.raises(InvalidValue, match="step sizes reach zero at iteration 3, so nothing is learned from there to 5"):
        ganfast.train("dcgan", data, steps=5, out=tmp_path / "run", resume=True)
    trainer = ganfast.Trainer("dcgan", data, decay="linear", **SMALL)
    trainer.run(2)
    with pytest.raises(InvalidValue, match="step sizes reach zero at iteration 2"):
        trainer.run(1)


def test_impossible_values_come_before_the_folder(tmp_path: Path, data: Path) -> None:
    for recipe, options, message in (
        ("wgan-gp", {"penalty": -1}, "'penalty': expected at least 0, got -1"),
        ("dcgan", {"lr": float("nan")}, "'lr': expected at least 0, got nan"),
        ("dcgan", {"beta1": 2.0}, "'beta1': expected from 0 to 0.9999, got 2"),
        ("dcgan", {"ema": 2.0}, "'ema': expected from 0 to"),
        ("wgan", {"clip": -1.0}, "'clip': expected at least 0"),
        ("infogan", {"categories": 0}, "'categories': expected at least 2, got 0"),
        ("infogan", {"batch": 1}, "normalises over the batch: expected a batch of at least 2, got 1"),
        ("cgan", {"classes": 2}, "has 3, got 2"),
    ):
        with pytest.raises(InvalidValue, match=message):
            ganfast.Trainer(recipe, data, out=tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()
    with pytest.raises(InvalidValue, match="out: expected the name of a folder"):
        ganfast.Trainer("dcgan", data, out="")
