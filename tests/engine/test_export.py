"""Samples become the file that was asked for, whole, or nothing at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganfast.engine import draw, export
from ganfast.errors import InvalidValue, NotWritable

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
POINTS = RNG.normal(size=(5, 2)).astype(np.float32)


def tree(folder: Path) -> list[str]:
    return sorted(str(place.relative_to(folder)) for place in folder.rglob("*"))


@pytest.mark.parametrize("samples", [GREY, COLOUR, POINTS], ids=["grey", "colour", "points"])
def test_arrays_come_back_as_they_were(tmp_path: Path, samples: Any) -> None:
    export.writer(tmp_path / "a.npy")(samples)
    export.writer(tmp_path / "a.npz")(samples)
    array = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert array.dtype == samples.dtype and np.array_equal(array, samples)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert archive.files == ["samples"] and np.array_equal(archive["samples"], samples)
    assert tree(tmp_path) == ["a.npy", "a.npz"]


@pytest.mark.parametrize(("samples", "mode"), [(GREY, "L"), (COLOUR, "RGB")])
def test_a_folder_has_one_picture_each(tmp_path: Path, samples: Any, mode: str) -> None:
    export.writer(tmp_path / "new" / "folder")(samples)
    assert tree(tmp_path / "new") == ["folder", *(f"folder/{n:06d}.png" for n in range(5))]
    for n in range(5):
        with Image.open(tmp_path / "new" / "folder" / f"{n:06d}.png") as image:
            assert image.mode == mode and np.array_equal(np.asarray(image).reshape(samples[n].shape), samples[n])


def test_a_picture_holds_every_sample(tmp_path: Path) -> None:
    export.writer(tmp_path / "grid.png")(COLOUR)
    with Image.open(tmp_path / "grid.png") as grid:
        assert np.array_equal(np.asarray(grid), np.asarray(draw.image_grid(COLOUR)))
    export.writer(tmp_path / "points.png")(POINTS)
    with Image.open(tmp_path / "points.png") as picture:
        assert min(picture.size) > 100


def test_an_empty_folder_is_filled_also_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    export.writer(tmp_path / "empty")(GREY)
    assert len(tree(tmp_path / "empty")) == 5
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export.writer(Path("."))(GREY)
    assert len(tree(tmp_path / "here")) == 5


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"old")
    export.writer(tmp_path / "a.npy")(GREY)
    assert np.array_equal(np.load(tmp_path / "a.npy"), GREY) and tree(tmp_path) == ["a.npy"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.jpg", InvalidValue, r"a\.jpg: expected a name ending in \.png, \.npy or \.npz"),
        ("full", NotWritable, "full is a folder that is not empty"),
        ("full.png", NotWritable, r"full\.png is a folder that is not empty"),
        ("file", NotWritable, "file is a file; expected the name of a new folder"),
        ("file/below/a.png", NotWritable, "expected a folder, and .*file is a file"),
    ],
)
def test_refusals_come_first_and_make_nothing(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    for folder in ("full", "full.png"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(error, match=message):
        export.writer(tmp_path / name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["closed/a.png", "closed/inner/a.png", "closed/inner/deep/folder", "closed/folder"])
def test_places_that_may_not_be_entered_are_refused_first(tmp_path: Path, closed: Path, name: str) -> None:
    with pytest.raises(NotWritable, match=r"cannot write .*/closed.*: [Pp]ermission denied"):
        export.writer(tmp_path / name)


def test_a_folder_that_may_not_be_listed_and_names_that_are_too_long(tmp_path: Path, closed: Path) -> None:
    closed.chmod(0o300)
    with pytest.raises(NotWritable, match=r"cannot write .*/closed: Permission denied"):
        export.writer(closed)
    with pytest.raises(NotWritable, match=r"cannot write .*: File name too long"):
        export.writer(tmp_path / f"{'n' * 300}.png")


def test_asking_makes_nothing_yet(tmp_path: Path) -> None:
    for name in ("new/deep/a.png", "new/deep/folder"):
        export.writer(tmp_path / name)
    assert tree(tmp_path) == []


def test_points_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"points are no pictures; write them to a name ending in"):
        export.writer(tmp_path / "folder")(POINTS)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("name", ["a.npy", "a.png", "folder"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export.writer(tmp_path / name)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(NotWritable, match=f"cannot write .*{name}: No space left on device"):
        write(GREY)
    assert tree(tmp_path) == []
