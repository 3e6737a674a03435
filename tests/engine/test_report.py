from __future__ import annotations

import base64
import io
import json
import math
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ganfast.engine import report
from ganfast.engine.report import SLIDES, write_report
from ganfast.engine.runfolder import RunFolder
from ganfast.errors import Damaged, NotFound, NotWritable

VOID = {"meta", "img", "input", "br"}
HOSTILE = "</script><script>alert('x')</script>&amp;\"<img src=http://evil.example/x>"
CONFIG: dict[str, Any] = {
    "recipe": "some-recipe",
    "about": {"paper": "Somebody 2016, arXiv:1511.06434", "networks": "conv", "loss": "logistic", "constraint": "none"},
    "options": {"image_size": 28, "ema": {"G": 0.999}, "betas": [0.5, 0.999]},
    "data": {"name": "clothes", "rows": 10000},
    "engine": {"batch": 64, "device": "cpu", "precision": "bf16", "seed": 3, "decay": None},
    "versions": {"torch": "2.13.0"},
    "command": "ganfast train some-recipe --data 'my data' --out runs/a",
    "resume": "ganfast train some-recipe --data 'my data' --out runs/a --resume",
    "steps": 4000,
}


class Page(HTMLParser):
    """A page taken apart: every tag must be closed in its turn."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.cells: list[str] = []
        self.source = (folder / "report.html").read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self.text.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text.append("")

    def handle_data(self, data: str) -> None:
        self.text[-1:] = [self.text[-1] + data] if self.text else [data]

    def said(self) -> list[str]:
        return [text.strip() for text in self.text if text.strip()]

    def after(self, label: str) -> str:
        said = self.said()
        return said[said.index(label) + 1]

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def slides(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(next(text for text in self.said() if text.startswith("[{")))
        return found


def opened(uri: str | None) -> Image.Image:
    assert uri is not None
    head, _, data = uri.partition(",")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert head == f"data:image/{(image.format or '').lower()};base64"
    return image


def a_run(folder: Path, steps: int = 40, every: int = 100, samples: int = 40, **config: Any) -> RunFolder:
    run = RunFolder.create(folder, CONFIG | config)
    run._events_wanted = False
    for index in range(1, steps + 1):
        step = index * every
        run.append(
            {
                "step": step,
                "kimg": step * 0.064,
                "seconds": index * 3.0,
                "images_per_second": 2000.0 + (index * 37) % 11,
                "critic/adversarial": 1.0 / index,
            }
        )
        if index <= samples:
            run.save_sample(step, Image.new("RGB", (60, 40), (6 * index, 0, 0)))
    return run


def finish(run: RunFolder) -> Path:
    run.close()
    return write_report(run.path)


def test_the_page_says_what_the_run_was(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.append({"step": 4001, "metric/FD[cnn]": 12.345678})
    assert write_report(tmp_path) == tmp_path / "report.html"
    page = Page(tmp_path)
    assert {"some-recipe on clothes", CONFIG["about"]["paper"], "conv · loss: logistic · constraint: none"} <= set(page.said())
    speeds = [2000.0 + (index * 37) % 11 for index in range(1, 41)]
    expected = {
        "steps": "4,001",
        "images/s, median": f"{statistics.median(speeds):,.0f}",
        "training time": "2m 00s",
        "device": "cpu",
        "precision": "bf16",
        "seed": "3",
        "FD[cnn]": "12.35",
        "Reproduce this run:": CONFIG["command"],
        "Continue it:": CONFIG["resume"],
        "ema.G": "0.999",
        "betas": "[0.5, 0.999]",
        "decay": "null",
        "torch": "2.13.0",
        "rows": "10000",
    }
    assert {label: page.after(label) for label in expected} == expected
    assert "notice" not in [attributes.get("class") for _, attributes in page.tags]


def test_kimg_is_the_last_one_logged(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    write_report(tmp_path)
    assert Page(tmp_path).after("kimg") == "256.0"
    run.append({"step": 4001, "note": "a row without it"})
    write_report(tmp_path)
    assert Page(tmp_path).after("kimg") == "256.0"


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    finish(a_run(tmp_path))
    page = Page(tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/"), (tag, name, value)
        assert tag not in ("link", "iframe", "object", "base", "form")
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "$" not in page.source


def test_pictures_inside_are_the_runs(tmp_path: Path) -> None:
    finish(a_run(tmp_path))
    last, film, slide, curves = (opened(image["src"]) for image in Page(tmp_path).images())
    assert np.asarray(last.convert("RGB"))[20, 30].tolist() == [240, 0, 0]
    assert (len(list(ImageSequence.Iterator(film))), film.size) == (40, (60, 45))
    np.testing.assert_allclose(np.asarray(slide.convert("RGB"))[20, 30], [240, 0, 0], atol=6)  # lossy WebP
    with Image.open(tmp_path / "curves.png") as drawn:
        np.testing.assert_array_equal(np.asarray(curves.convert("RGB")), np.asarray(drawn.convert("RGB")))


def test_the_slider_holds_at_most_24_pictures_with_both_ends(tmp_path: Path) -> None:
    finish(a_run(tmp_path))
    page = Page(tmp_path)
    slides = page.slides()
    assert len(slides) == SLIDES == 24
    assert (slides[0]["step"], slides[-1]["step"]) == (100, 4000)
    for slide in slides:
        red = np.asarray(opened(slide["picture"]).convert("RGB"))[20, 30, 0]
        assert abs(int(red) - 6 * slide["step"] // 100) <= 6
    slider = next(attributes for tag, attributes in page.tags if tag == "input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "23", "23")


def test_without_a_script_the_last_picture_shows_and_the_slider_hides(tmp_path: Path) -> None:
    finish(a_run(tmp_path))
    page = Page(tmp_path)
    assert next(image["src"] for image in page.images() if image.get("id") == "slide") == page.slides()[-1]["picture"]
    assert any(attributes.get("class") == "scrub" and "hidden" in attributes for _, attributes in page.tags)


def test_everything_is_escaped(tmp_path: Path) -> None:
    hostile: dict[str, Any] = {
        "recipe": HOSTILE,
        "about": dict.fromkeys(CONFIG["about"], HOSTILE),
        "data": {"name": HOSTILE, HOSTILE: HOSTILE},
        "options": {HOSTILE: {HOSTILE: [HOSTILE]}},
        "engine": {"device": HOSTILE, "precision": HOSTILE, "seed": HOSTILE},
        "command": HOSTILE,
        "resume": HOSTILE,
        HOSTILE: {"a": 1},
        "$title": "${header}",
    }
    run = a_run(tmp_path, steps=3, **hostile)
    run.append({"step": 4000, f"metric/{HOSTILE}": 1.0, f"{HOSTILE}/x": 2.0})
    finish(run)
    page = Page(tmp_path)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert all((image["src"] or "").startswith("data:") for image in page.images())
    assert page.after("Reproduce this run:") == HOSTILE
    assert f"{HOSTILE} on {HOSTILE}" in page.said()
    assert "<script>alert" not in page.source
    assert page.after("$title") == "${header}"


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    a_run(tmp_path, steps=5)
    write_report(tmp_path)
    assert "This run stands at step 500 of 4,000." in Page(tmp_path).said()


def test_values_that_are_not_finite_are_told(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.append({"step": 4001, "critic/adversarial": math.nan})
    run.append({"step": 4002, "critic/adversarial": math.inf, "images_per_second": math.nan, "kimg": 256.1})
    write_report(tmp_path)
    assert "2 of 42 rows hold values that are not finite, first at step 4001." in Page(tmp_path).said()


def test_the_clock_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, CONFIG)
    run._events_wanted = False
    for step, seconds in enumerate([1000.0, 3600.0, 3650.0, math.nan]):
        run.append({"step": step, "seconds": seconds})
    write_report(tmp_path)
    assert Page(tmp_path).after("training time") == "1h 00m"


def test_a_run_with_nothing_yet_gets_a_page(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {})
    write_report(tmp_path)
    page = Page(tmp_path)
    assert page.after("steps") == "0"
    assert len(page.images()) == 1
    assert not (tmp_path / "training.webp").exists()


def test_large_noisy_samples_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SLIDES", 3)
    run = RunFolder.create(tmp_path, CONFIG)
    run._events_wanted = False
    for step in range(3):
        run.save_sample(step, Image.fromarray(np.random.default_rng(step).integers(0, 256, (900, 1100, 3), dtype=np.uint8)))
    assert (tmp_path / "samples" / "step-00000002.png").stat().st_size > 2_000_000
    finish(run)
    page = Page(tmp_path)
    sizes = {slide["step"]: len(slide["picture"]) * 3 / 4 for slide in page.slides()}
    assert max(sizes.values()) <= report.SLIDE_BYTES + 60
    assert len(page.images()[0]["src"] or "") * 3 / 4 <= report.PICTURE_BYTES + 60
    bound = 24 * report.SLIDE_BYTES + report.PICTURE_BYTES + 3_000_000 + 400_000
    assert bound * 4 / 3 < 10_000_000


def test_what_is_no_run_gets_no_page(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no run in"):
        write_report(tmp_path)
    RunFolder.create(tmp_path, CONFIG)
    (tmp_path / "log.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(Damaged, match="line 1"):
        write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "log.jsonl"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    finish(a_run(tmp_path, steps=2))
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "training.webp").unlink()
    (tmp_path / "training.webp").mkdir()
    with pytest.raises(NotWritable, match=r"training\.webp"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp-*"))
