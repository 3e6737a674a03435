"""A run that was killed goes on to exactly the end that it would have had: every recipe, any moment, any signal.

The commands run in processes of their own, which die of real signals. To start quickly they are forked, one after the other, from
one process that has imported everything and computed nothing: this file, run as a script.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from ganfast import recipes
from ganfast.engine import checkpoint

STEPS, KILLED, KILLS = 5, 3, 6
SHORT = ["--batch", "4", "--width", "4", "--log-every", "1", "--tick-every", "2"]
# Between them the recipes cover what else has a state or a schedule.
MORE = {
    "cgan": ["--seed", "7"],
    "cyclegan": ["--pool", "3"],
    "dcgan": ["--flip", "--accumulate", "2"],
    "gan": ["--discriminator", "maxout"],
    "sngan": ["--precision", "bf16"],
    "wgan-gp": ["--decay", "linear"],
}
TIMES = ("seconds", "images_per_second")
Job = dict[str, Any]


def arguments(recipe: str, out: str, *more: str, every: int = 2) -> list[str]:
    data = "pair" if recipe == "cyclegan" else "data.npz"
    words = ["train", recipe, "--data", data, "--out", out, "--steps", str(STEPS), "--checkpoint-every", str(every)]
    return [*words, *SHORT, *MORE.get(recipe, []), *more]


def jobs_of(recipe: str) -> list[Job]:
    killed = arguments(recipe, f"{recipe}-killed")
    return [
        {"name": f"{recipe}-straight", "arguments": arguments(recipe, f"{recipe}-straight")},
        {"name": f"{recipe}-killed", "arguments": killed, "signals": {KILLED: ["SIGKILL"]}},
        {"name": f"{recipe}-resumed", "arguments": [*killed, "--resume"]},
    ]


def jobs_at_random() -> list[Job]:
    """Each is killed at one call of a Python or C function, picked from those of a whole run: in steps, in saves, before."""
    straight = {"name": "random-straight", "arguments": arguments("wgan", "random-straight", every=1), "count": True}
    rng = random.Random(0)
    killed = {"arguments": arguments("wgan", "random-killed", every=1), "resume": True}
    moments = [rng.uniform(0.2, 0.7) for _ in range(KILLS)]
    kills = [{**killed, "name": f"random-{k}", "kill": ["random-straight", at]} for k, at in enumerate(moments)]
    return [straight, *kills, {**killed, "name": "random-resumed"}]


def jobs_of_signals() -> list[Job]:
    jobs: list[Job] = []
    for name, signals in (("term", ["SIGTERM"]), ("int", ["SIGINT"]), ("both", ["SIGTERM", "SIGTERM"])):
        jobs.append({"name": name, "arguments": arguments("wgan", name), "signals": {2: signals}})
        jobs.append({"name": f"{name}-resumed", "as_told_by": name})
    twice = arguments("wgan", "twice")
    jobs.append({"name": "twice", "arguments": twice, "signals": {3: ["SIGINT", "SIGINT"]}})
    jobs.append({"name": "twice-resumed", "arguments": [*twice, "--resume"]})
    return jobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, in which all jobs have run; ``done.json`` has their exit statuses."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
    np.savez(folder / "data.npz", images=images, labels=np.arange(24) % 3)
    for side in "AB":
        (folder / "pair" / f"train{side}").mkdir(parents=True)
        for number in range(5):
            Image.fromarray(images[number + 5 * (side == "B"), :, :, 0]).save(folder / "pair" / f"train{side}" / f"{number}.png")
    jobs = [job for recipe in recipes.names() for job in jobs_of(recipe)] + jobs_at_random() + jobs_of_signals()
    (folder / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run([sys.executable, __file__], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    return folder


def status(place: Path, name: str) -> int:
    codes: dict[str, int] = json.loads((place / "done.json").read_text())
    return codes[name]


def text(place: Path, name: str, kind: str = "out") -> str:
    return (place / f"{name}.{kind}").read_text()


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in found]


def facts(state: checkpoint.State) -> dict[str, Any]:
    """All but what the user asked for: a run that goes on asks for the device and precision that "auto" has become."""
    return {key: value for key, value in state.scalars.items() if key != "settings"}


def same(run: Path, other: Path) -> None:
    """Both runs have, to the last bit, the same state at the end, and the same log but for times, and the same pictures."""
    states = [checkpoint.load(folder / "checkpoints", warn=pytest.fail) for folder in (run, other)]
    assert facts(states[0]) == facts(states[1]) and states[0].scalars["step"] == STEPS
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name in states[0].tensors:
        mine, theirs = (state.tensors[name].reshape(-1).view(torch.uint8) for state in states)
        assert torch.equal(mine, theirs), name
    assert rows(run) == rows(other) and [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    pictures = [{file.name: file.read_bytes() for file in (folder / "samples").iterdir()} for folder in (run, other)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 4
    assert not [file for folder in (run, other) for file in folder.rglob("*.tmp-*")]


@pytest.mark.parametrize("recipe", recipes.names())
def test_killed_and_resumed_is_straight_on(place: Path, recipe: str) -> None:
    assert status(place, f"{recipe}-straight") == 0, text(place, f"{recipe}-straight", "err")
    assert status(place, f"{recipe}-killed") == -signal.SIGKILL
    assert status(place, f"{recipe}-resumed") == 0, text(place, f"{recipe}-resumed", "err")
    same(place / f"{recipe}-straight", place / f"{recipe}-killed")


def test_the_runs_differ_where_they_should(place: Path) -> None:
    """So that equality above means something: training moved every network, and steps are unlike each other."""
    for recipe in recipes.names():
        losses = [tuple(value for key, value in row.items() if "/" in key) for row in rows(place / f"{recipe}-straight")]
        assert len(set(losses)) == STEPS
    wgan = [checkpoint.load(place / run / "checkpoints", warn=pytest.fail) for run in ("wgan-straight", "random-straight")]
    assert all(torch.equal(value, wgan[1].tensors[name]) for name, value in wgan[0].tensors.items())  # intervals change nothing
    older = checkpoint.read(checkpoint.saves(place / "wgan-straight" / "checkpoints")[1])
    moved = {name.split(".")[1] for name, value in older.tensors.items() if not torch.equal(value, wgan[0].tensors[name])}
    assert moved >= {"G", "D"}


def test_killed_at_random_moments(place: Path) -> None:
    ends = [status(place, f"random-{k}") for k in range(KILLS)]
    assert set(ends) <= {0, -signal.SIGKILL} and ends.count(-signal.SIGKILL) >= KILLS - 2
    assert status(place, "random-resumed") == 0, text(place, "random-resumed", "err")
    same(place / "random-straight", place / "random-killed")


@pytest.mark.parametrize(("name", "sent"), [("term", "SIGTERM"), ("int", "SIGINT"), ("both", "SIGTERM")])
def test_a_signal_saves_and_the_command_it_prints_goes_on(place: Path, name: str, sent: str) -> None:
    assert status(place, name) == 0
    (line,) = text(place, name).splitlines()
    command = f"ganfast train wgan --data {place}/data.npz --out {name} --steps {STEPS} --resume"
    assert line == f"stopped by {sent} at iteration 3; go on with: {command}"  # sent in iteration 2: saved within one step
    assert status(place, f"{name}-resumed") == 0, text(place, f"{name}-resumed", "err")
    same(place / "wgan-straight", place / name)


def test_a_second_interrupt_leaves_at_once(place: Path) -> None:
    assert status(place, "twice") == 130
    assert text(place, "twice") == "" and "Traceback" not in text(place, "twice", "err")
    assert status(place, "twice-resumed") == 0
    same(place / "wgan-straight", place / "twice")


# ---- the script that runs the jobs


def _serve() -> None:
    import importlib

    for module in ("ganfast.api", "ganfast.cli", "ganfast.engine.draw", "torch.utils.tensorboard", "torch._dynamo", "PIL.Image"):
        importlib.import_module(module)
    from ganfast.engine import loop

    vars(loop)["write_report"] = lambda folder: folder  # the report has its own tests and is slow
    torch.set_num_threads(1)
    done = {}
    for job in json.loads(Path("jobs.json").read_text()):
        child = os.fork()
        if child == 0:
            _run(job)
        done[job["name"]] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    Path("done.json").write_text(json.dumps(done))


def _run(job: Job) -> NoReturn:
    from ganfast import cli
    from ganfast.engine.trainer import Trainer

    name, code = job["name"], 3
    for kind, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    words = shlex.split(text(Path(), job["as_told_by"]).rpartition("go on with: ")[2])[1:] if "as_told_by" in job else []
    words = words or job["arguments"]
    if job.get("resume") and (Path(words[words.index("--out") + 1]) / "config.json").exists():
        words = [*words, "--resume"]
    step = Trainer.step

    def signalled(self: Trainer) -> dict[str, torch.Tensor]:
        for sent in job.get("signals", {}).get(str(self.steps), []):
            os.kill(os.getpid(), signal.Signals[sent])
        return step(self)

    Trainer.step = signalled  # type: ignore[method-assign]
    calls = 0
    last = 0
    if "kill" in job:
        straight, share = job["kill"]
        last = int(int(Path(f"{straight}.calls").read_text()) * share)

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        if last or job.get("count"):
            sys.setprofile(count)
        cli.main(words)
    except SystemExit as end:
        sys.setprofile(None)
        code = int(end.code or 0)
        if job.get("count"):
            Path(f"{name}.calls").write_text(str(calls))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
