"""A few broken files among many do not stop a run: they are left out, counted and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ganfast.data import open_dataset

Write = Callable[..., Path]


@pytest.mark.parametrize("headers", [True, False])
def test_they_are_left_out_with_their_labels(tmp_path: Path, write_png: Write, headers: bool) -> None:
    """Broken in the header, which the first look meets, or only in the pixels, which decoding meets."""
    for k in range(250):
        write_png(tmp_path / "set" / f"class{k % 2}" / f"{k:03}.png", np.full((16, 16), k, np.uint8))
    for k in (4, 101):
        file = tmp_path / "set" / f"class{k % 2}" / f"{k:03}.png"
        file.write_bytes(b"broken" if headers else file.read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"2 of 250 images cannot be read and are left out: .*004\.png, .*101\.png") as warned:
        data = open_dataset(tmp_path / "set")
    assert len(warned) == 1
    pixels, labels = data.groups["real"]["real"], data.groups["real"]["labels"]
    kept = [k for k in [*range(0, 250, 2), *range(1, 250, 2)] if k not in (4, 101)]
    assert pixels[:, 0, 0, 0].tolist() == kept
    assert labels.tolist() == [k % 2 for k in kept]
