"""A run as one self-contained page: every picture is inside it, so it can be mailed and opens without a network."""

from __future__ import annotations

import base64
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ganfast.engine import checkpoint, draw, film
from ganfast.engine import runfolder as run
from ganfast.files import write_atomically

SLIDES = 24
SLIDE_BYTES = 120_000
PICTURE_BYTES = 800_000

Rows = Sequence[Mapping[str, Any]]


def write_report(folder: Path) -> Path:
    """Draw curves.png, scores.png and training.webp, and write report.html, from what the folder holds.

    A run that stopped early gets a page of what there is. The page stays under 10 MB. Returns its path.
    Raises NotFound, Damaged or NotWritable.
    """
    config, rows, samples = run.read_config(folder), run.read_rows(folder), run.sample_pictures(folder)
    evaluations = run.read_rows(folder, run.EVALUATIONS)
    title = f"{config.get('recipe', 'run')} on {_section(config, 'data').get('name', 'data')}"
    write_atomically(folder / run.CURVES, run.png(draw.curves(rows, title=title)))
    if samples:
        film.animation(samples, folder / run.ANIMATION)
    best = _best(folder, evaluations)
    if evaluations:
        write_atomically(folder / run.SCORES, run.png(draw.scores(evaluations, best=best)))
    page = Template((files("ganfast.engine") / "report_template.html").read_text("utf-8")).substitute(
        title=escape(title),
        header=_header(title, config, rows),
        figures=_figures(config, rows, evaluations),
        pictures=_pictures(folder, samples) + _scores(folder, evaluations, best),
        commands=_commands(config),
        settings=_settings(config),
    )
    write_atomically(folder / run.REPORT, page.encode())
    return folder / run.REPORT


def _header(title: str, config: Mapping[str, Any], rows: Rows) -> str:
    about = _section(config, "about")
    parts = (("networks", ""), ("loss", "loss: "), ("constraint", "constraint: "))
    networks = " · ".join(f"{label}{about[key]}" for key, label in parts if about.get(key))
    lines = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="paper">{escape(str(about.get("paper", "")))}</p>',
        f'<p class="networks">{escape(networks)}</p>',
    ]
    return "\n".join(lines + [f'<p class="notice">{escape(text)}</p>' for text in _notices(config, rows)])


def _notices(config: Mapping[str, Any], rows: Rows) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = []
    step, steps = (rows[-1].get("step", 0) if rows else 0), config.get("steps")
    if isinstance(steps, int) and step < steps:
        found.append(f"This run stands at step {step:,} of {steps:,}.")
    broken = [row for row in rows if any(isinstance(value, float) and not math.isfinite(value) for value in row.values())]
    if broken:
        found.append(f"{len(broken)} of {len(rows)} rows hold values that are not finite, first at step {broken[0].get('step')}.")
    return found


def _figures(config: Mapping[str, Any], rows: Rows, evaluations: Rows) -> str:
    engine = _section(config, "engine")
    last = {key: value for row in rows for key, value in row.items() if _finite(value)}
    speeds = [row["images_per_second"] for row in rows if _finite(row.get("images_per_second"))]
    tiles = {
        "steps": f"{last.get('step', 0):,}",
        "kimg": f"{last.get('kimg', 0):,.1f}",
        "images/s, median": f"{statistics.median(speeds):,.0f}" if speeds else "-",
        "training time": _duration(last.get("seconds", 0.0)),
        "device": str(engine.get("device", "-")),
        "precision": str(engine.get("precision", "-")),
        "seed": str(engine.get("seed", "-")),
    }
    last |= {key: value for row in evaluations for key, value in row.items() if key.startswith(run.METRIC) and _finite(value)}
    scores = {key: value for key, value in last.items() if key.startswith(run.METRIC) and not key.endswith(" std")}
    tiles |= {key.removeprefix(run.METRIC): f"{value:.4g}" for key, value in scores.items()}
    cells = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items()]
    return '<dl class="figures">\n' + "\n".join(cells) + "\n</dl>"


def _pictures(folder: Path, samples: Sequence[Path]) -> str:
    curves = _card("Curves", "", f'<img src="{_png(folder / run.CURVES)}" alt="loss curves">')
    if not samples:
        return curves
    chosen = film.spread(samples, SLIDES)
    slides = [{"step": run.step_of(place), "picture": _webp(place, SLIDE_BYTES, 640)} for place in chosen]
    step, top = f"step {slides[-1]['step']:,}", len(slides) - 1
    moving = base64.b64encode((folder / run.ANIMATION).read_bytes()).decode()
    scrub = (
        f'<img id="slide" src="{slides[-1]["picture"]}" alt="samples at {step}">\n'
        f'<div class="scrub" hidden><input type="range" min="0" max="{top}" value="{top}" aria-label="step">'
        f"<output>{step}</output></div>\n"
        f'<script type="application/json" id="slides">{json.dumps(slides)}</script>'
    )
    last = _card("Samples", f"last, {step}", f'<img src="{_last(samples[-1])}" alt="samples at {step}">')
    pair = [
        _card(
            "The run as a film",
            f"{min(len(samples), film.FRAMES)} frames",
            f'<img src="data:image/webp;base64,{moving}" alt="samples over time">',
        ),
        _card("Step by step", f"{len(slides)} of {len(samples)} pictures", scrub),
    ]
    return "\n".join([last, '<div class="pair">', *pair, "</div>", curves])


def _scores(folder: Path, evaluations: Rows, best: Mapping[str, Any] | None) -> str:
    """The curve of the scores, and how they were taken."""
    if not evaluations:
        return ""
    manifest = _section(evaluations[-1], "manifest")
    fake, real = (
        f"{_section(manifest, side).get('n', '-'):,} {what}" for side, what in (("fake", "samples"), ("real", "real images"))
    )
    hint = f"{fake} against {real}" + (f"; checkpoints/best is of step {best['step']:,}" if best else "")
    picture = f'<img src="{_png(folder / run.SCORES)}" alt="scores over the run">'
    told = f"<details><summary>How they were taken</summary>\n<table>\n{_rows_of(_flat(manifest))}\n</table></details>"
    return "\n" + _card("Scores", hint, f"{picture}\n{told}")


def _best(folder: Path, evaluations: Rows) -> Mapping[str, Any] | None:
    """The row of the checkpoint that is kept as the best."""
    place = checkpoint.best(folder / run.CHECKPOINTS)
    return next((row for row in reversed(evaluations) if place and row.get("step") == checkpoint.step_of(place)), None)


def _card(title: str, hint: str, body: str) -> str:
    small = f" <small>{escape(hint)}</small>" if hint else ""
    return f'<section class="card">\n<h2>{escape(title)}{small}</h2>\n{body}\n</section>'


def _commands(config: Mapping[str, Any]) -> str:
    labels = {"command": "Reproduce this run", "resume": "Continue it"}
    blocks = [f"<p>{label}:</p>\n<pre>{escape(str(config[key]))}</pre>" for key, label in labels.items() if config.get(key)]
    return "\n".join(blocks) or "<p>No command was recorded.</p>"


def _settings(config: Mapping[str, Any]) -> str:
    """The whole configuration, one table for each of its sections, and one for what stands alone."""
    alone = {key: value for key, value in config.items() if not isinstance(value, Mapping) and key not in ("command", "resume")}
    tables = {"run": alone} | {key: value for key, value in config.items() if isinstance(value, Mapping)}
    return "\n".join(_table(name, _flat(values)) for name, values in tables.items() if values)


def _table(name: str, values: Mapping[str, str]) -> str:
    return f'<table>\n<tr class="group"><th colspan="2">{escape(name)}</th></tr>\n{_rows_of(values)}\n</table>'


def _rows_of(values: Mapping[str, str]) -> str:
    return "\n".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in values.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _last(picture: Path) -> str:
    """The picture as it is where it is small enough, otherwise re-encoded."""
    return _png(picture) if picture.stat().st_size <= PICTURE_BYTES else _webp(picture, PICTURE_BYTES, 1280)


def _png(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _webp(picture: Path, budget: int, most: int) -> str:
    image = film.load(picture)
    image.thumbnail((most, most))
    return f"data:image/webp;base64,{base64.b64encode(film.webp([image], budget)).decode()}"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}
