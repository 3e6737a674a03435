"""Pictures out of plain arrays and rows: sample grids, point clouds and curves.

Colours are Okabe and Ito's (Color Universal Design, 2008), which stay apart for every kind of colour vision.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ganfast.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

Array = np.ndarray[Any, np.dtype[Any]]
Extent = tuple[float, float, float, float]

WIDTH, HEIGHT = 960, 1280  # pixels that a grid of small images is enlarged to fill at most
INK, FAINT, RULE = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
VANISHED = 1e-8  # gradients shorter than this have no direction worth drawing


def image_grid(images: Array, *, columns: int | None = None, scale: int | None = None) -> Image:
    """uint8 images (n, H, W, C), C 1 or 3, in rows of ``columns`` (about a square unless given), row by row.

    Small images are enlarged by a whole number, so that every pixel stays a sharp square; ``scale`` overrides which.
    Raises InvalidType or InvalidValue for anything but such an array.
    """
    images = _checked("images", images)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise InvalidValue(f"expected at least one column, got {columns}")
    rows = math.ceil(len(images) / columns)
    return _tile(images, rows, columns, scale)


def side_by_side(columns: Mapping[str, Array], *, scale: int | None = None) -> Image:
    """Named columns of uint8 images (n, H, W, C), one sample a row: real A | made B | back to A.

    Grey and colour columns may be mixed. Raises InvalidValue where their counts or sizes differ.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not columns:
        raise InvalidValue("expected at least one named column of images, got none")
    arrays = {name: _checked(name, array) for name, array in columns.items()}
    shapes = {array.shape[:3] for array in arrays.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InvalidValue(f"expected columns of as many images of one size, got {found}")
    channels = max(array.shape[3] for array in arrays.values())
    wide = [np.broadcast_to(array, (*array.shape[:3], channels)) for array in arrays.values()]
    grid = _tile(np.stack(wide, axis=1).reshape(-1, *wide[0].shape[1:]), len(wide[0]), len(wide), scale)

    header = 26
    picture = Image.new("RGB", (grid.width, grid.height + header), "white")
    picture.paste(grid, (0, header))
    pen = ImageDraw.Draw(picture)
    cell = grid.width / len(arrays)
    for index, name in enumerate(arrays):
        size = next((size for size in range(16, 8, -1) if ImageFont.load_default(size).getlength(name) < cell - 4), 8)
        pen.text((cell * (index + 0.5), header / 2), name, fill=INK, font=ImageFont.load_default(size), anchor="mm")
    return picture


def points(
    fake: Array,
    real: Array,
    *,
    surface: Callable[[Array], Array] | None = None,
    arrows: tuple[Array, Array] | None = None,
    title: str = "",
    extent: Extent | None = None,
) -> Image:
    """Generated points (n, 2) over real ones (m, 2), optionally over the critic's value and with gradients as arrows.

    ``surface`` maps points (k, 2) to values (k,). ``arrows`` is (positions (k, 2), vectors (k, 2)): all are drawn at one length,
    the legend says how long they are, and a vanished one is a ring. ``extent`` (left, right, bottom, top) is the real points'
    own with a margin unless given, so frames of one run lie exactly over each other.
    """
    from matplotlib.colors import LinearSegmentedColormap

    fake, real = _plane("fake", fake), _plane("real", real)
    left, right, bottom, top = extent or _extent(real)
    figure = _figure(7.6, 6.6)
    axes = figure.add_axes((0.075, 0.12, 0.76, 0.80))
    if surface is not None:
        side = 160
        x, y = np.meshgrid(np.linspace(left, right, side), np.linspace(bottom, top, side))
        grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        values = np.ma.masked_invalid(np.asarray(surface(grid), dtype=np.float64).reshape(side, side))
        calm = LinearSegmentedColormap.from_list("calm", ["#ffffff", "#d3e4f1", "#8fb7d6", "#5b8fb9"])
        heat = axes.imshow(values, origin="lower", extent=(left, right, bottom, top), cmap=calm, aspect="auto")
        if values.count() and np.ptp(values.compressed()) > 0:
            axes.contour(x, y, values, levels=8, colors="white", linewidths=0.7, linestyles="solid")
        bar = figure.colorbar(heat, cax=figure.add_axes((0.86, 0.12, 0.022, 0.80)))
        bar.set_label("critic", color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    axes.scatter(real[:, 0], real[:, 1], s=7, color=INK, alpha=0.22, linewidths=0, label=f"real ({len(real)})")
    axes.scatter(fake[:, 0], fake[:, 1], s=9, color=VERMILION, alpha=0.75, linewidths=0, label=f"generated ({len(fake)})")
    if arrows is not None:
        _arrows(axes, *arrows, length=0.04 * (right - left))
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(
        loc="upper left", bbox_to_anchor=(-0.01, -0.05), ncols=len(handles), frameon=False, handletextpad=0.3, markerscale=1.6
    )
    return _picture(figure)


def curves(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> Image:
    """The rows of a log as panels over the step: losses by phase, the critic's outputs, gradient norms, speed, metrics.

    Faint lines are the values, strong ones their moving average. A value that is null or not finite is marked by a cross; a key
    that a row lacks is no event, and a count that stays zero gets no panel. Rows without ``step`` are passed over.
    """
    panels = _panels(rows)
    across = 1 if len(panels) < 2 else 2
    down = max(1, math.ceil(len(panels) / across))
    figure = _figure(6.2 * across, 0.5 + 2.35 * down)
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.04)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    if not panels:
        figure.text(0.5, 0.45, "nothing logged yet", ha="center", color=FAINT)
        return _picture(figure)
    grid = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    for axes, (name, series) in zip(grid, panels.items(), strict=False):
        _panel(axes, name, series)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[: len(panels)][-across:]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    return _picture(figure)


def scores(rows: Sequence[Mapping[str, Any]], *, best: Mapping[str, Any] | None = None) -> Image:
    """Scores of samples as panels over kimg, from rows with ``kimg`` and ``metric/NAME``; ``metric/NAME std`` is drawn as a band.

    ``best`` is the row whose checkpoint is kept.
    """
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("metric/") and not key.endswith(" std")))
    across = min(2, max(1, len(names)))
    down = max(1, math.ceil(len(names) / across))
    figure = _figure(10.4 if across == 1 else 12.4, 0.3 + 2.7 * down)
    figure.set_layout_engine("constrained", hspace=0.06, wspace=0.04)
    grid = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
    for axes, name, colour in zip(grid, names, LINES * (1 + len(names) // len(LINES)), strict=False):
        kimg, value, spread = (
            np.array([math.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)
            for key in ("kimg", name, f"{name} std")
        )
        axes.fill_between(kimg, value - spread, value + spread, color=colour, alpha=0.18, linewidth=0)
        axes.plot(kimg, value, color=colour, linewidth=1.7, marker="o", markersize=3.5)
        if best is not None and best.get(name) is not None:
            label = f"{best[name]:.4g}, the checkpoint kept as best"
            axes.plot(best["kimg"], best[name], "o", color=INK, markersize=10, fillstyle="none", markeredgewidth=1.5, label=label)
            axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.97), frameon=False, handletextpad=0.2)
        axes.set_title(name.removeprefix("metric/"), loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        axes.margins(x=0.02, y=0.1)
    for axes in grid[len(names) :]:
        axes.remove()
    for axes in grid[: len(names)][-across:]:
        axes.set_xlabel("kimg")
        axes.tick_params(labelbottom=True)
    return _picture(figure)


def _checked(name: str, images: Array) -> Array:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = f"{images.dtype} array" if isinstance(images, np.ndarray) else type(images).__name__
        raise InvalidType(f"{name}: expected a uint8 array (n, H, W, C), got {kind}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise InvalidValue(f"{name}: expected images (n, H, W, C) with C 1 or 3 and n, H, W at least 1, got {images.shape}")
    return images


def _tile(images: Array, rows: int, columns: int, scale: int | None) -> Image:
    """Images row by row on white, each enlarged by ``scale``, with a gap of two pixels between and around them."""
    from PIL import Image

    gap = 2
    n, height, width, channels = images.shape
    if scale is None:
        room = min((WIDTH - gap) / columns - gap, WIDTH) / width, ((HEIGHT - gap) / rows - gap) / height
        scale = max(1, math.floor(min(room)))
    if scale < 1:
        raise InvalidValue(f"expected a scale of at least 1, got {scale}")
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    high, wide = height * scale + gap, width * scale + gap
    canvas = np.full((rows * high + gap, columns * wide + gap, channels), 255, np.uint8)
    for index in range(n):
        top, left = gap + index // columns * high, gap + index % columns * wide
        canvas[top : top + high - gap, left : left + wide - gap] = images[index]
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


def _plane(name: str, values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise InvalidValue(f"{name}: expected points (n, 2), got {values.shape}")
    return values


def _extent(real: Array) -> Extent:
    finite = real[np.isfinite(real).all(axis=1)]
    if not len(finite):
        return -1.0, 1.0, -1.0, 1.0
    low, high = finite.min(axis=0), finite.max(axis=0)
    half = max(0.6 * float((high - low).max()), 1e-3)
    x, y = (low + high) / 2
    return x - half, x + half, y - half, y + half


def _arrows(axes: Axes, positions: Array, vectors: Array, *, length: float) -> None:
    from matplotlib.lines import Line2D

    positions, vectors = _plane("arrow positions", positions), _plane("arrow vectors", vectors)
    magnitude = np.linalg.norm(vectors, axis=1)
    alive = np.isfinite(magnitude) & (magnitude >= VANISHED)
    if alive.any():
        unit = length * vectors[alive] / magnitude[alive, None]
        x, y = positions[alive].T
        axes.quiver(x, y, *unit.T, angles="xy", scale_units="xy", scale=1, width=0.003, color=INK, zorder=3)
        label = f"gradient, median length {np.median(magnitude[alive]):.2g}"  # a quiver has no legend entry worth showing
        axes.add_line(Line2D([], [], linestyle="none", marker=r"$\rightarrow$", markersize=9, color=INK, label=label))
    if not alive.all():
        label = f"no gradient: {(~alive).sum()} of {len(alive)}"
        x, y = positions[~alive].T
        axes.scatter(x, y, s=26, facecolors="none", edgecolors=INK, linewidths=0.9, label=label, zorder=3)


def _panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Array]]:
    """Panel -> line -> (k, 2) steps and values, NaN where a value is null or not a finite number."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        if not isinstance(row.get("step"), int | float):
            continue
        for key, value in row.items():
            place = _place(key)
            if place is None or isinstance(value, str):
                continue
            number = float(value) if value is not None and math.isfinite(value) else math.nan
            panels.setdefault(place[0], {}).setdefault(place[1], []).append((row["step"], number))
    for name in [name for name, lines in panels.items() if name in lines and not any(value for _, value in lines[name])]:
        del panels[name]
    order = sorted(panels, key=lambda name: (name in LATER, LATER.index(name) if name in LATER else 0))
    return {name: {line: np.array(pairs) for line, pairs in panels[name].items()} for name in order}


OUTPUTS, NORMS, SPEED = "critic's output", "gradient norm", "images/s"
LATER = (OUTPUTS, NORMS, SPEED)


def _place(key: str) -> tuple[str, str] | None:
    """The panel and the name of the line that a row's key belongs to."""
    group, _, name = key.rpartition("/")
    if key in ("step", "kimg", "seconds"):
        return None
    if key == "images_per_second":
        return SPEED, ""
    if name == "grad_norm":
        return NORMS, group
    if re.match(r"D\w*\(", name):
        return OUTPUTS, name
    if group == "metric":
        return name, ""
    return (f"{group} loss", name) if group else (name, name)


def _panel(axes: Axes, name: str, series: Mapping[str, Array]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    positive = all((pairs[:, 1][np.isfinite(pairs[:, 1])] > 0).all() for pairs in series.values())
    if name == NORMS and positive:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    for colour, (line, pairs) in zip(LINES * (1 + len(series) // len(LINES)), series.items(), strict=False):
        step, value = pairs.T
        good = np.isfinite(value)
        smooth = _smoothed(value)
        axes.plot(step, value, color=colour, alpha=0.25, linewidth=0.9)
        axes.plot(step, smooth, color=colour, linewidth=1.7, label=line or None, marker="o" if good.sum() == 1 else None)
        if not good.all():
            bottom = axes.get_xaxis_transform()
            label = f"not finite ({(~good).sum()})"
            floor = np.full((~good).sum(), 0.03)
            axes.plot(step[~good], floor, "x", color=colour, markersize=5, transform=bottom, clip_on=False, label=label)
    if name == SPEED:
        axes.set_ylim(bottom=0)
    beyond = 0 if name == NORMS else _trim(axes, np.concatenate([pairs[:, 1] for pairs in series.values()]))
    axes.set_title(name, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    if beyond:
        note = f"{beyond} beyond the frame"
        axes.text(0.995, 0.96, note, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=FAINT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[1]:
        columns = 3 if len(series) > 2 else 4
        axes.legend(loc="lower right", bbox_to_anchor=(1.01, 0.97), ncols=columns, frameon=False, handlelength=1.1)


def _trim(axes: Axes, values: Array) -> int:
    """Frame the bulk of the values where a few extremes would flatten it. Returns how many lie outside."""
    values = values[np.isfinite(values)]
    if not len(values):
        return 0
    low, high = np.quantile(values, (0.02, 0.98))
    if np.ptp(values) <= 5 * (high - low) or low == high:
        return 0
    margin = 0.3 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    return int(((values < low - margin) | (values > high + margin)).sum())


def _smoothed(values: Array) -> Array:
    """A centred moving average over about a fifteenth of the values, which passes over what is not finite."""
    width = 2 * (len(values) // 30) + 1
    good = np.isfinite(values)
    window = np.ones(width)
    total = np.convolve(np.where(good, values, 0.0), window, mode="full")[width // 2 : width // 2 + len(values)]
    count = np.convolve(good.astype(float), window, mode="full")[width // 2 : width // 2 + len(values)]
    return np.where(good, total / np.maximum(count, 1), np.nan)


def _figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, apart from pyplot and its global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, facecolor="white")


def _picture(figure: Figure) -> Image:
    """The figure in the house's dress, as pixels."""
    from PIL import Image

    for axes in figure.axes:
        axes.tick_params(which="both", colors=FAINT, labelsize=8.5, length=0)
        axes.xaxis.label.set_color(FAINT)
        for side in axes.spines.values():
            side.set_color(RULE)
        if (legend := axes.get_legend()) is not None:
            for text in legend.get_texts():
                text.set(color=INK, fontsize=8.5)
            for handle in filter(None, legend.legend_handles):
                handle.set_alpha(1)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # Agg draws PNG, whatever backend pyplot would have
    return Image.open(buffer).convert("RGB")
