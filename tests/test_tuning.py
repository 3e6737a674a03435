from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ganfast import tuning


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "cache"))
    _forget()
    yield tmp_path / "cache"
    _forget()


def _forget() -> None:
    """As in a new process."""
    tuning._file.cache_clear()
    tuning._known.clear()


def slow() -> None:
    time.sleep(0.02)


def quick() -> None:
    pass


def test_the_fastest_is_measured_once_and_remembered(folder: Path) -> None:
    calls: list[str] = []
    ways = {"slow": lambda: (calls.append("slow"), slow()), "quick": lambda: calls.append("quick")}
    assert tuning.fastest("op (1, 2)", ways) == "quick"
    measured = len(calls)
    assert tuning.fastest("op (1, 2)", ways) == "quick"
    assert len(calls) == measured
    ((machine, known),) = json.loads((folder / "tuning.json").read_text()).items()
    assert known == {"op (1, 2)": "quick"}
    assert "threads, torch 2" in machine


def test_a_disturbed_machine_is_measured_until_times_come_again() -> None:
    """Something else has the processor during the first rounds, in which no two calls take the same time."""
    better = iter([0.0, 9.0, 7.0, 5.0, 2.0, 2.0])  # the first call warms up
    other = iter([0.0, 8.0, 6.5, 4.0, 3.0, 3.0])
    assert tuning._measured({"better": lambda: None, "other": lambda: None}, lambda _: 1.0) == "better"
    turns = {"better": better, "other": other}
    ways = {name: functools.partial(next, times) for name, times in turns.items()}
    assert tuning._measured(ways, lambda call: call()) == "better"


def test_what_never_comes_again_is_decided_in_the_end() -> None:
    turns = itertools.count(100, -1)
    assert tuning._measured({"a": lambda: None, "b": lambda: None}, lambda _: 1.1 ** next(turns)) == "b"
    assert next(turns) == 100 - 2 * tuning.MOST


def test_a_later_process_chooses_what_the_first_one_measured() -> None:
    tuning.fastest("op", {"a": slow, "b": quick})
    _forget()
    assert tuning.fastest("op", {"a": quick, "b": slow}) == "b"


def test_what_another_process_chose_meanwhile_holds(folder: Path) -> None:
    def other_process() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tuning.json").write_text(json.dumps({tuning._machine(torch.get_num_threads()): {"op": "slow"}}))

    assert tuning.fastest("op", {"quick": other_process, "slow": slow}) == "slow"


def test_an_unknown_choice_is_measured_again(folder: Path) -> None:
    folder.mkdir()
    (folder / "tuning.json").write_text(json.dumps({tuning._machine(torch.get_num_threads()): {"op": "gone"}}))
    assert tuning.fastest("op", {"slow": slow, "quick": quick}) == "quick"
    assert json.loads((folder / "tuning.json").read_text())[tuning._machine(torch.get_num_threads())]["op"] == "quick"


def test_each_number_of_threads_has_its_own_choices() -> None:
    threads = torch.get_num_threads()
    try:
        assert tuning.fastest("op", {"a": slow, "b": quick}) == "b"
        torch.set_num_threads(threads + 1)
        assert tuning.fastest("op", {"a": quick, "b": slow}) == "a"
    finally:
        torch.set_num_threads(threads)
    assert tuning.fastest("op", {"a": quick, "b": slow}) == "b"


def test_a_choice_that_is_no_name_is_measured_again(folder: Path) -> None:
    folder.mkdir()
    (folder / "tuning.json").write_text(json.dumps({tuning._machine(torch.get_num_threads()): {"op": ["slow"]}}))
    assert tuning.fastest("op", {"slow": slow, "quick": quick}) == "quick"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_replaced(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "tuning.json").write_text(text)
    assert tuning.fastest("op", {"slow": slow, "quick": quick}) == "quick"
    assert json.loads((folder / "tuning.json").read_text())[tuning._machine(torch.get_num_threads())] == {"op": "quick"}


def test_while_a_graph_is_captured_nothing_is_measured_and_the_first_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_gpu", lambda index: "a GPU")
    monkeypatch.setattr(tuning, "_seconds_on_gpu", tuning._seconds)
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    ways, gpu = {"torch": slow, "triton": quick}, torch.device("cuda", 0)
    assert tuning.fastest("op", ways, gpu) == "torch"
    capturing = False
    assert tuning.fastest("op", ways, gpu) == "triton"
    capturing = True
    assert tuning.fastest("op", ways, gpu) == "triton"
    assert tuning.fastest("op", {"torch": quick, "triton": slow}) == "torch"  # of this machine's processor, which is another


def test_without_a_folder_each_process_measures(folder: Path) -> None:
    folder.parent.joinpath("cache").write_text("a file")
    assert tuning.fastest("op", {"slow": slow, "quick": quick}) == "quick"
    _forget()
    assert tuning.fastest("op", {"slow": quick, "quick": slow}) == "slow"
