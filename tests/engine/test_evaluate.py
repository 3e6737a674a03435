"""Scores during training: when they are taken, what they leave, and that training is none the wiser."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ganfast import recipes
from ganfast.data import Dataset
from ganfast.engine import checkpoint, draw, loop
from ganfast.engine.report import write_report
from ganfast.engine.runfolder import RunFolder
from ganfast.engine.trainer import Trainer
from ganfast.errors import NonFinite, NotWritable

N = 300  # samples: more than are made at a time
EVERY = 0.008  # kimg: two iterations of a batch of 4


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing it takes a second and has tests of its own."""
    monkeypatch.setattr(loop, "write_report", lambda folder: folder)


class Given:
    """A scorer whose scores are given, by iteration; ``seen`` are the samples that it was shown, ``asked`` how often."""

    def __init__(self, scores: Iterable[float], *, less_is_better: bool = True) -> None:
        self._scores = iter(scores)
        self.best_by, self.less_is_better = "FD[x]", less_is_better
        self.seen: list[Tensor] = []
        self.prepared = 0
        self.amid: Callable[[], None] = lambda: None

    def prepare(self, check: Callable[[], None]) -> None:
        self.prepared += 1
        check()

    def scores(self, samples: Iterable[Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        chunks = []
        for chunk in samples:
            chunks.append(chunk)
            self.amid()
        self.seen.append(torch.cat(chunks))
        return {"FD[x]": next(self._scores), "KD[x]": 1.0, "KD[x] std": 0.5}, {"network": {"name": "x"}}


class Measured(Given):
    """A scorer that tells states apart: the mean of all pixels."""

    def __init__(self) -> None:
        super().__init__(())

    def scores(self, samples: Iterable[Tensor]) -> tuple[dict[str, float], dict[str, Any]]:
        super().__init__([torch.cat([chunk.double() for chunk in samples]).mean().item()])
        return super().scores([torch.zeros(1)])


def made(out: Path, **settings: Any) -> tuple[Trainer, RunFolder]:
    torch.manual_seed(0)
    recipe = recipes.get("dcgan", image_size=16, channels=1, width=4)
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
    settings = {"batch": 4, "log_every": 1, "tick_every": 100, "checkpoint_every": 3, "keep": 1} | settings
    settings = {"eval_every_kimg": EVERY, "eval_n": N} | settings
    trainer = Trainer(recipe, Dataset("noise", {"real": {"real": images}}), out=out, **settings)
    return trainer, RunFolder.create(out, {"recipe": recipe.name}, resume=True)


def evaluated(folder: RunFolder) -> dict[int, float | None]:
    return {row["step"]: row["metric/FD[x]"] for row in folder.evaluations()}


def best(out: Path) -> str | None:
    place = out / "checkpoints" / "best"
    return place.readlink().name if place.is_symlink() else None


def saved(out: Path) -> list[int]:
    return sorted(checkpoint.step_of(place) for place in checkpoint.saves(out / "checkpoints"))


def state(out: Path, step: int) -> checkpoint.State:
    return checkpoint.read(out / "checkpoints" / f"step-{step:08d}")


def same(one: checkpoint.State, other: checkpoint.State) -> bool:
    settings = [{**state.scalars, "settings": None} for state in (one, other)]
    return settings[0] == settings[1] and all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


# ---- when, and what it leaves


def test_scores_are_taken_at_every_so_many_images_and_at_the_end(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    scorer = Given([5.0, 4.0, 3.0])
    loop.run(trainer, 5, folder, scorer=scorer)
    assert evaluated(folder) == {2: 5.0, 4: 4.0, 5: 3.0} and [row["step"] for row in folder.rows()] == [1, 2, 3, 4, 5]
    row = folder.evaluations()[0]
    assert row.pop("seconds") > 0
    assert row == {
        "step": 2,
        "kimg": 0.008,
        "metric/FD[x]": 5.0,
        "metric/KD[x]": 1.0,
        "metric/KD[x] std": 0.5,
        "best_by": "FD[x]",
        "n": N,
        "less_is_better": True,
        "manifest": {"network": {"name": "x"}},
    }


def test_the_samples_are_those_of_the_averages_and_of_the_same_inputs_each_time(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    scorer = Given(itertools.count())
    loop.run(trainer, 4, folder, scorer=scorer)
    first, second = scorer.seen
    assert first.dtype == torch.uint8 and first.shape == second.shape == (N, 16, 16, 1) and not torch.equal(first, second)
    assert torch.equal(second, torch.cat(list(trainer.stream(N, seed=0))))
    with torch.no_grad():
        for weight in trainer.networks.G.parameters():
            weight.zero_()
    assert torch.equal(second, torch.cat(list(trainer.stream(N, seed=0))))


def test_the_first_samples_of_a_stream_do_not_depend_on_how_many_follow(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path)
    many, few = (torch.cat(list(trainer.stream(n, seed=3))) for n in (600, 257))
    assert len(many) == 600 and torch.equal(many[:257], few)
    assert not torch.equal(few, torch.cat(list(trainer.stream(257, seed=4))))
    before = torch.get_rng_state()
    list(trainer.stream(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_the_same_to_the_bit_with_and_without(tmp_path: Path) -> None:
    for name, scorer in (("with", Given(itertools.count(9, -1))), ("without", None)):
        trainer, folder = made(tmp_path / name, checkpoint_every=7)
        loop.run(trainer, 7, folder, scorer=scorer)
    assert len(RunFolder(tmp_path / "with").evaluations()) == 4
    assert same(state(tmp_path / "with", 7), state(tmp_path / "without", 7))
    rows = [
        [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in read.rows()]
        for read in (RunFolder(tmp_path / "with"), RunFolder(tmp_path / "without"))
    ]
    assert rows[0] == rows[1]


# ---- the best checkpoint


def test_the_best_checkpoint_is_kept_whatever_is_pruned(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 12, folder, scorer=Given([5.0, 2.0, 3.0, 2.0, 9.0, 4.0]))
    assert best(tmp_path) == "step-00000004" and saved(tmp_path) == [4, 12]
    assert trainer.best == tmp_path / "checkpoints" / "step-00000004" and trainer.best_step == 4
    assert state(tmp_path, 4).scalars["step"] == 4


def test_more_may_be_better_and_what_is_no_number_never_is(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    scorer = Given([math.nan, 2.0, 3.0, math.nan], less_is_better=False)
    loop.run(trainer, 8, folder, scorer=scorer)
    assert best(tmp_path) == "step-00000006" and math.isnan(evaluated(folder)[8] or 0)


def test_a_run_that_goes_on_knows_the_best_score_again(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 4, folder, scorer=Given([1.0, 5.0]))
    again, folder = made(tmp_path)
    again.load_newest(pytest.fail)
    loop.rewind(folder, again.steps, {"intervals": {}, "steps": 4})
    loop.run(again, 8, folder, scorer=Given([3.0, 0.5]))
    assert evaluated(folder) == {2: 1.0, 4: 5.0, 6: 3.0, 8: 0.5} and best(tmp_path) == "step-00000008"
    assert saved(tmp_path) == [2, 8], "the best before is pruned by the next save, not by this one"


def test_scores_of_another_number_of_samples_are_not_compared(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 4, folder, scorer=Given([1.0, 2.0]))
    assert best(tmp_path) == "step-00000002"
    again, folder = made(tmp_path, eval_n=20)
    again.load_newest(pytest.fail)
    loop.rewind(folder, again.steps, {"intervals": {}, "steps": 4})
    loop.run(again, 8, folder, scorer=Given([7.0, 8.0, 6.0]))  # of iterations 4, once more, 6 and 8
    assert [(row["step"], row["n"]) for row in folder.evaluations()] == [(2, N), (4, N), (4, 20), (6, 20), (8, 20)]
    assert best(tmp_path) == "step-00000008"


def test_a_kill_between_the_score_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(out: Path, killed: bool) -> None:
        trainer, folder = made(out, checkpoint_every=1)
        if killed:
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Trainer, "choose_best", killer(Trainer.choose_best))
                loop.run(trainer, 6, folder, scorer=Measured())
            trainer, folder = made(out, checkpoint_every=1)
            trainer.load_newest(pytest.fail)
            loop.rewind(folder, trainer.steps, {"intervals": {}, "steps": 6})
        loop.run(trainer, 6, folder, scorer=Measured())

    def killer(choose: Any) -> Any:
        calls = itertools.count()

        def chosen(trainer: Trainer, steps: list[int]) -> None:
            if next(calls) == 1:  # the first was at the beginning
                raise KeyboardInterrupt
            choose(trainer, steps)

        return chosen

    ran(tmp_path / "killed", True)
    ran(tmp_path / "straight", False)
    assert evaluated(RunFolder(tmp_path / "killed")) == evaluated(RunFolder(tmp_path / "straight"))
    assert best(tmp_path / "killed") == best(tmp_path / "straight")
    assert same(state(tmp_path / "killed", 6), state(tmp_path / "straight", 6))


# ---- what may come in between


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_amid_scoring_ends_it_and_the_run_that_goes_on_begins_with_it(tmp_path: Path, name: str) -> None:
    trainer, folder = made(tmp_path / "stopped")
    scorer = Given([5.0, 4.0])
    scorer.amid = lambda: signal.raise_signal(signal.Signals[name]) if trainer.steps == 4 else None
    assert loop.run(trainer, 6, folder, scorer=scorer) == name
    assert trainer.steps == 4 and evaluated(folder) == {2: 5.0} and 4 in saved(tmp_path / "stopped") and len(scorer.seen) == 1
    again, folder = made(tmp_path / "stopped")
    again.load_newest(pytest.fail)
    loop.rewind(folder, again.steps, {"intervals": loop.intervals(again.settings, 6), "steps": 6})
    on = Given([4.0, 3.0])
    assert loop.run(again, 6, folder, scorer=on) == ""
    straight, other = made(tmp_path / "straight")
    through = Given([5.0, 4.0, 3.0])
    loop.run(straight, 6, other, scorer=through)
    assert evaluated(folder) == evaluated(other) == {2: 5.0, 4: 4.0, 6: 3.0}
    assert torch.equal(on.seen[0], through.seen[1]) and torch.equal(on.seen[1], through.seen[2])
    assert same(state(tmp_path / "stopped", 6), state(tmp_path / "straight", 6))


def test_a_signal_before_the_real_side_is_there_waits_for_nothing(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    step = trainer.step

    def stepped() -> dict[str, Tensor]:
        if trainer.steps == 1:
            signal.raise_signal(signal.SIGTERM)
        return step()

    trainer.step = stepped  # type: ignore[method-assign]
    scorer = Given([1.0])
    assert loop.run(trainer, 6, folder, scorer=scorer) == "SIGTERM"
    assert trainer.steps == 2 and scorer.seen == [] and folder.evaluations() == [] and saved(tmp_path) == [2]


def test_a_roll_back_forgets_scores_beyond_it_and_a_best_checkpoint_that_went_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, folder = made(tmp_path, checkpoint_every=3, keep=2)
    step, broken = trainer.step, [True]

    def stepped() -> dict[str, Tensor]:
        if trainer.steps == 7 and broken:
            broken.clear()
            state = tmp_path / "checkpoints" / "step-00000006" / "state.safetensors"
            state.write_bytes(state.read_bytes()[:-1])
            raise NonFinite("no number")
        return step()

    trainer.step = stepped  # type: ignore[method-assign]
    loop.run(trainer, 8, folder, scorer=Given([5.0, 4.0, 1.0, 4.5, 4.2]))
    assert evaluated(folder) == {2: 5.0, 4: 4.0, 6: 4.5, 8: 4.2} and best(tmp_path) == "step-00000004"


def test_a_full_disk_is_noted_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise NotWritable(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "append_evaluation", full)
    trainer, folder = made(tmp_path)
    assert loop.run(trainer, 4, folder, scorer=Given([5.0, 4.0])) == ""
    assert trainer.steps == 4 and best(tmp_path) is None and saved(tmp_path) == [4]
    assert capsys.readouterr().err.count("training goes on without it") == 2


def test_a_torn_row_is_dropped_where_the_run_goes_on(tmp_path: Path) -> None:
    trainer, folder = made(tmp_path)
    loop.run(trainer, 4, folder, scorer=Given([5.0, 4.0]))
    with (tmp_path / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 6, "met')
    assert evaluated(folder) == {2: 5.0, 4: 4.0}
    folder.forget_evaluations_after(2)
    assert (tmp_path / "evaluations.jsonl").read_text().count("\n") == 1 and evaluated(folder) == {2: 5.0}


# ---- what is seen of it


ROWS: list[dict[str, Any]] = [
    {"step": 2, "kimg": 1.0, "metric/FD[x]": 5.0, "metric/KD[x]": 1.0, "metric/KD[x] std": 0.5, "manifest": {"fake": {"n": 40}}},
    {"step": 4, "kimg": 2.0, "metric/FD[x]": None, "metric/KD[x]": 0.5, "metric/KD[x] std": 0.1, "manifest": {"fake": {"n": 40}}},
]


def test_each_score_has_a_panel_and_the_best_a_mark() -> None:
    one = draw.scores([{key: value for key, value in row.items() if "KD" not in key} for row in ROWS])
    both, marked = draw.scores(ROWS), draw.scores(ROWS, best=ROWS[0])
    assert one.height == both.height == marked.height and both.width > one.width
    assert both.tobytes() != marked.tobytes()
    blue, orange = (tuple(bytes.fromhex(colour[1:])) for colour in (draw.BLUE, draw.VERMILION))
    pixels = np.asarray(both).reshape(-1, 3)
    assert (pixels == blue).all(axis=1).any() and (pixels == orange).all(axis=1).any()


def test_the_report_tells_the_last_scores_and_how_they_were_taken(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"recipe": "some"})
    plain = write_report(folder.path).read_text()
    assert "Scores" not in plain and not (folder.path / "scores.png").exists()
    for row in ROWS:
        folder.append_evaluation({**row, "manifest": {**row["manifest"], "network": {"name": "<b>x</b>"}, "real": {"n": 1234}}})
    checkpoint.choose_best(folder.path / "checkpoints", saving(folder.path / "checkpoints", 2))
    page = write_report(folder.path).read_text()
    assert "40 samples against 1,234 real images; checkpoints/best is of step 2" in page
    assert "<dt>FD[x]</dt><dd>5</dd>" in page and "<dt>KD[x]</dt><dd>0.5</dd>" in page and "<dt>KD[x] std</dt>" not in page
    assert "<th>network.name</th><td>&lt;b&gt;x&lt;/b&gt;</td>" in page and (folder.path / "scores.png").exists()


def test_tensorboard_receives_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []
    _, folder = made(tmp_path)
    monkeypatch.setattr(folder, "_send", lambda values, step: sent.append((step, values)))
    folder.append_evaluation(ROWS[0] | {"seconds": 2.0})
    assert sent == [(2, {"metric/FD[x]": 5.0, "metric/KD[x]": 1.0, "metric/KD[x] std": 0.5})]


# ---- the pointer itself


def saving(folder: Path, step: int, value: float = 0.0, keep: int = 1) -> Path:
    return checkpoint.save(folder, step, checkpoint.State({"w": torch.tensor(value)}, {"step": step}), keep=keep)


def test_best_is_not_pruned_and_only_one_is_best(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path) is None
    checkpoint.choose_best(tmp_path, saving(tmp_path, 1))
    saving(tmp_path, 2)
    assert [checkpoint.step_of(place) for place in checkpoint.saves(tmp_path)] == [2, 1]
    checkpoint.choose_best(tmp_path, saving(tmp_path, 3))
    saving(tmp_path, 4)
    assert [checkpoint.step_of(place) for place in checkpoint.saves(tmp_path)] == [4, 3]
    checkpoint.choose_best(tmp_path, None)
    assert checkpoint.best(tmp_path) is None and not (tmp_path / "best").is_symlink()


def test_best_follows_a_save_that_takes_its_place(tmp_path: Path) -> None:
    checkpoint.choose_best(tmp_path, saving(tmp_path, 1))
    again = saving(tmp_path, 1, value=1.0)
    assert again.name == "step-00000001.1" and checkpoint.best(tmp_path) == again == tmp_path / (tmp_path / "best").readlink()


def test_a_best_that_is_gone_is_none(tmp_path: Path) -> None:
    checkpoint.choose_best(tmp_path, saving(tmp_path, 3))
    checkpoint.truncate_after(tmp_path, 2)
    assert checkpoint.best(tmp_path) is None
    checkpoint.choose_best(tmp_path, None)
    assert not (tmp_path / "best").is_symlink()


def test_settings_say_when_and_by_what() -> None:
    from ganfast.engine.settings import EVALUATE_EVERY, Settings
    from ganfast.errors import InvalidValue

    assert Settings().evaluates == ""
    assert Settings(eval_metrics="kid").evaluates_every == EVALUATE_EVERY
    assert (Settings(eval_every_kimg=3).evaluates, Settings(eval_every_kimg=3).evaluates_every) == ("fid", 3)
    for name, value in (("eval_every_kimg", -1.0), ("eval_every_kimg", math.nan), ("eval_n", 1)):
        with pytest.raises(InvalidValue, match=name):
            dataclasses.replace(Settings(), **{name: value})


def test_rows_are_json_whatever_the_score_is(tmp_path: Path) -> None:
    _, folder = made(tmp_path)
    folder.append_evaluation({"step": 1, "metric/FD[x]": math.inf, "manifest": {"n": 3}})
    (line,) = (tmp_path / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["metric/FD[x]"] is None and folder.evaluations()[0]["metric/FD[x]"] == math.inf
