"""Decoded once, found again by content, never half there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganfast.data import cache as caching
from ganfast.data import fashion, open_dataset
from ganfast.data.pixels import fitted
from ganfast.errors import NotWritable

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator, write_png: Write) -> Path:
    """Six labelled pictures."""
    for k in range(6):
        write_png(tmp_path / "set" / f"class{k % 2}" / f"{k}.png", rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by one with every picture that is decoded."""
    seen: list[Any] = []

    def counted(image: Any, look: Any) -> np.ndarray:
        seen.append(look)
        return fitted(image, look)

    monkeypatch.setattr("ganfast.data.decode.fitted", counted)
    return seen


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "data").iterdir())


def test_the_second_opening_decodes_nothing(folder: Path, cache: Path, decoded: list[Any]) -> None:
    first = open_dataset(folder)
    assert len(decoded) == 6
    second = open_dataset(folder)
    assert len(decoded) == 6
    assert second.digest == first.digest
    assert second.class_names == first.class_names == ("class0", "class1")
    assert len(entries(cache)) == 1


def test_pixels_stay_on_disk(folder: Path) -> None:
    array: Any = open_dataset(folder).groups["real"]["real"]
    while not isinstance(array, np.memmap):
        array = array.base
        assert array is not None
    assert array.mode == "r"


def test_the_key_is_the_content(folder: Path, cache: Path, decoded: list[Any], write_png: Write) -> None:
    before = open_dataset(folder)
    file = folder / "class0" / "0.png"
    status = file.stat()
    os.utime(file, (1, 1))
    assert open_dataset(folder).digest == before.digest
    assert len(decoded) == 6  # another time, the same bytes
    data = bytearray(file.read_bytes())
    file.write_bytes(bytes(data))
    write_png(file, np.zeros((8, 8, 3), np.uint8))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_dataset(folder).groups["real"]["real"][0].max() == 0  # other bytes, the same time
    file.rename(folder / "class1" / "0.png")
    assert open_dataset(folder).groups["real"]["labels"].tolist() == [0, 0, 1, 1, 1, 1]
    assert len(entries(cache)) == 3


def test_settings_are_part_of_the_key(folder: Path, cache: Path) -> None:
    looks: list[dict[str, Any]] = [{}, {"image_size": 4}, {"image_size": 4, "filter": "box"}, {"channels": 1}]
    shapes = [open_dataset(folder, **look).groups["real"]["real"].shape for look in looks]
    assert shapes == [(6, 8, 8, 3), (6, 4, 4, 3), (6, 4, 4, 3), (6, 8, 8, 1)]
    assert len(entries(cache)) == 4


@pytest.mark.parametrize("file", ["real.npy", "labels.npy", "entry.json"])
@pytest.mark.parametrize("fault", ["flip", "truncate", "delete"])
def test_a_damaged_entry_is_found_out_and_made_again(folder: Path, cache: Path, file: str, fault: str) -> None:
    good = open_dataset(folder).digest
    path = entries(cache)[0] / file
    data = bytearray(path.read_bytes())
    path.unlink()  # the good one stays mapped
    if fault != "delete":
        data[-9] ^= 4
        path.write_bytes(data if fault == "flip" else data[:-20])
    with pytest.warns(UserWarning, match="is damaged and will be made again"):
        assert open_dataset(folder).digest == good
    assert open_dataset(folder).digest == good
    assert [entry.suffix for entry in entries(cache)] == [""]


KILLED = """
import os, sys
import ganfast.data.cache as caching
from ganfast.data import open_dataset

moment, folder = sys.argv[1:]
if moment == "rename":
    caching.os.replace = lambda *_: os._exit(9)
elif moment == "manifest":
    caching.json.dump = lambda *_, **__: os._exit(9)
else:
    caching._write_header = lambda *_: os._exit(9)
open_dataset(folder)
"""


@pytest.mark.parametrize("moment", ["header", "manifest", "rename"])
def test_a_writer_that_dies_leaves_no_entry(folder: Path, cache: Path, moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, moment, str(folder)], env=_environment(cache), timeout=120)
    assert done.returncode == 9
    left = entries(cache)
    assert len(left) == 1
    assert ".tmp-" in left[0].name
    data = open_dataset(folder)
    assert len(data) == 6
    assert [entry.suffix for entry in entries(cache)] == [""]  # what the dead one left is swept


def test_two_processes_at_once(folder: Path, cache: Path) -> None:
    code = "import sys; from ganfast.data import open_dataset; print(open_dataset(sys.argv[1]).digest)"
    command = [sys.executable, "-c", code, str(folder)]
    running = [subprocess.Popen(command, env=_environment(cache), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {process.communicate(timeout=120)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert digests == {open_dataset(folder).digest}
    assert len(entries(cache)) == 1


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "GANFAST_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_losing_the_race_uses_the_winner(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = caching.Entry.open
    asked: list[bool] = []

    def blind_once(self: caching.Entry) -> Any:
        asked.append(True)
        return None if len(asked) == 2 else genuine(self)

    monkeypatch.setattr(caching.Entry, "open", blind_once)
    first = open_dataset(folder)
    assert open_dataset(folder).digest == first.digest
    assert [entry.suffix for entry in entries(cache)] == [""]


def test_a_cache_that_cannot_be_written_falls_back_to_memory(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written .*; the data stay in memory") as warned:
        data = open_dataset(folder, cache=tmp_path / "file" / "cache")
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert len(data) == 6


def test_a_user_without_a_home_has_data_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No $HOME, and no entry in the user database either."""
    for name in ("GANFAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)
    with pytest.warns(UserWarning, match=r"no home folder; set GANFAST_CACHE .*the data stay in memory"):
        assert len(open_dataset(folder)) == 6
    monkeypatch.setattr(fashion, "SYSTEM", folder)
    with pytest.raises(NotWritable, match="no home folder; set GANFAST_CACHE"):
        open_dataset("fashion-mnist")


def test_a_cache_that_may_not_be_entered_falls_back_to_memory(folder: Path, closed: Path) -> None:
    for cache in (closed, closed / "inner"):
        with pytest.warns(UserWarning, match=r"the cache cannot be written .*Permission denied.*; the data stay in memory"):
            assert len(open_dataset(folder, cache=cache)) == 6


def test_a_full_disk_falls_back_to_memory(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "_write_header", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(open_dataset(folder)) == 6
    assert entries(cache) == []


def test_rows_may_come_to_any_number(tmp_path: Path) -> None:
    """The header that is written first must hold the count that is known last."""
    blocks = [np.full((256, 3, 3, 1), k, np.uint8) for k in range(50)] + [np.zeros((7, 3, 3, 1), np.uint8)]
    written = caching.write_rows(tmp_path / "rows.npy", iter(blocks))
    assert written.shape == (50 * 256 + 7, 3, 3, 1)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), np.concatenate(blocks))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert caching.folder("here") == Path("here")
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "own"))
    assert caching.folder(None) == tmp_path / "own"
    monkeypatch.delenv("GANFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert caching.folder(None) == tmp_path / "xdg" / "ganfast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caching.folder(None) == tmp_path / ".cache" / "ganfast"
