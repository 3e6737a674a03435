"""A few broken files among many do not stop a run: they are left out, counted and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ganfast.data import open_dataset
from ganfast.errors import InvalidData

Write = Callable[..., Path]


@pytest.mark.parametrize("headers", [True, False])
def test_they_are_left_out_with_their_labels(tmp_path: Path, write_png: Write, headers: bool) -> None:
    """Broken in the header, which the first look meets, or only in the pixels, which decoding meets."""
    for k in range(250):
        write_png(tmp_path / "set" / f"class{k % 2}" / f"{k:03}.png", np.full((16, 16), k, np.uint8))
    for k in (4, 101):
        file = tmp_path / "set" / f"class{k % 2}" / f"{k:03}.png"
        file.write_bytes(b"broken" if headers else file.read_bytes()[:-30])
    line = "set: 2 of 250 images cannot be read and are left out: class0/004.png, class1/101.png"
    with pytest.warns(UserWarning) as warned:
        data = open_dataset(tmp_path / "set")
    assert [str(warning.message) for warning in warned] == [line]
    with pytest.warns(UserWarning) as warned:  # of what was decoded before
        again = open_dataset(tmp_path / "set")
    assert [str(warning.message) for warning in warned] == [line]
    assert again.digest == data.digest and open_dataset(again) is again
    pixels, labels = data.groups["real"]["real"], data.groups["real"]["labels"]
    kept = [k for k in [*range(0, 250, 2), *range(1, 250, 2)] if k not in (4, 101)]
    assert pixels[:, 0, 0, 0].tolist() == kept
    assert labels.tolist() == [k % 2 for k in kept]


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read(tmp_path: Path, write_png: Write) -> None:
    for k in range(100):
        write_png(tmp_path / "set" / f"{k:02}.png", np.full((8, 8), k, np.uint8))
    moved = (tmp_path / "set" / "07.png").rename(tmp_path / "moved.png")
    (tmp_path / "set" / "07.png").symlink_to(moved.with_name("absent.png"))
    with pytest.warns(UserWarning, match=r"set: 1 of 100 images cannot be read and are left out: 07\.png"):
        assert len(open_dataset(tmp_path / "set")) == 99
    moved.rename(tmp_path / "absent.png")
    assert len(open_dataset(tmp_path / "set")) == 100  # the link leads somewhere now, and that is other data
    (tmp_path / "absent.png").unlink()
    for k in range(10, 20):
        (tmp_path / "set" / f"{k}.png").unlink()
    with pytest.raises(InvalidData, match=r"07\.png cannot be read .*of 90 images at most 0 may be unreadable"):
        open_dataset(tmp_path / "set")


def test_more_than_a_few_are_counted(tmp_path: Path, write_png: Write) -> None:
    for k in range(700):
        write_png(tmp_path / "set" / f"{k:03}.png", np.zeros((4, 4), np.uint8))
    for k in range(7):
        (tmp_path / "set" / f"{k:03}.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"7 of 700 .*: 000\.png, 001\.png, 002\.png, 003\.png, 004\.png and 2 more$"):
        open_dataset(tmp_path / "set")
