from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ganfast.benches import harness, plot
from ganfast.cli import ganfast as command
from ganfast.errors import InvalidData, InvalidValue


def row(provider: str, median: float, ratio: float | str = "", case: str = "a case") -> dict[str, object]:
    figures = {"median_us": median, "low_us": 0.9 * median, "high_us": 1.2 * median, "turns": 10, "ratio": ratio}
    where = {"dtype": "float32", "device": "a device", "threads": 2, "torch": "2.13.0", "commit": "abc", "date": "2026-01-01"}
    return {"bench": "an op", "case": case, "provider": provider, "against": "stock" if ratio else "", **figures, **where}


def table(folder: Path, *rows: dict[str, object]) -> Path:
    harness.append(folder / "ops.csv", list(rows))
    return folder / "ops.csv"


def test_the_last_figure_of_every_provider_is_drawn(tmp_path: Path) -> None:
    first, last = row("ours", 900.0, 1.1), row("ours", 250.0, 4.0)
    place = table(tmp_path, row("stock", 1000.0), first, row("compiled", 1500.0), last)
    (axes,) = plot.draw(plot.read(place)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["compiled", "stock", "ours"]
    assert [bar.get_width() for bar in axes.patches] == [1.5, 1.0, 0.25]
    assert {"1.50 ms", "1.00 ms", "250 µs   4.00x"} <= {text.get_text() for text in axes.texts}


def test_the_command_writes_a_picture_with_a_bar_as_long_as_it_says(tmp_path: Path) -> None:
    place = table(tmp_path, row("stock", 1000.0), row("ours", 500.0, 2.0), row("stock", 10.0, case="another"))
    done = CliRunner().invoke(command, ["bench", "plot", str(place), str(tmp_path / "ops.png")])
    assert done.exit_code == 0, done.output
    pixels = np.asarray(Image.open(tmp_path / "ops.png").convert("RGB")).astype(int)
    lengths = []
    for colour in (plot.SKY, plot.VERMILION):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        lengths.append((abs(pixels - rgb).max(-1) < 3).sum(1).max())
    assert lengths[1] / lengths[0] == pytest.approx(0.5, abs=0.02)


def test_only_the_benches_that_were_asked_for_are_drawn(tmp_path: Path) -> None:
    place = table(tmp_path, row("stock", 1000.0), {**row("stock", 10.0), "bench": "another"})
    cases = plot.read(place)
    assert {bench for _, bench, _ in plot.of_benches(cases, ["another"])} == {"another"}
    assert plot.of_benches(cases, ()) == cases
    done = CliRunner().invoke(command, ["bench", "plot", str(place), str(tmp_path / "ops.png"), "anothr"])
    assert isinstance(done.exception, InvalidValue) and "did you mean 'another'" in str(done.exception)
    assert not (tmp_path / "ops.png").exists()


def test_points_of_a_curve_are_drawn_as_lines(tmp_path: Path) -> None:
    points = [
        row(provider, time * n, ratio, f"batch={n}")
        for n in (16, 2)
        for provider, time, ratio in (("torch", 1e3, ""), ("ours", 5e2, 2.0))
    ]
    (axes,) = plot.draw(plot.read(table(tmp_path, *points))).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        "torch": [[2, 2], [16, 16]],
        "ours": [[2, 1], [16, 8]],
    }
    assert axes.get_xlabel() == "batch"


def test_what_is_no_such_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidData, match="not a table of these benches"):
        plot.read(tmp_path / "other.csv")
    with pytest.raises(InvalidData, match="cannot read"):
        plot.read(tmp_path / "none.csv")
    with pytest.raises(InvalidValue, match="no rows"):
        plot.draw(plot.read(table(tmp_path)))
