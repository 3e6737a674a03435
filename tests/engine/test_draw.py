from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganfast.engine import draw
from ganfast.errors import InvalidType, InvalidValue

INK = (0x1F, 0x29, 0x33)
VERMILION = (0xD5, 0x5E, 0x00)
Array = np.ndarray[Any, np.dtype[Any]]


def near(pixels: Array, colour: tuple[int, int, int], within: int = 60) -> Array:
    """Where a picture has about this colour."""
    return np.abs(pixels.astype(int) - colour).max(axis=-1) <= within


def distinct(n: int, height: int, width: int, channels: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The matplotlib figures behind the pictures that a test draws."""
    seen: list[Any] = []
    original: Callable[[Any], Image.Image] = draw._picture

    def keep(figure: Any) -> Image.Image:
        seen.append(figure)
        return original(figure)

    monkeypatch.setattr(draw, "_picture", keep)
    return seen


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(("n", "columns"), [(1, None), (7, 3), (6, 6), (64, None)])
def test_every_pixel_of_a_grid_is_a_square_in_its_place(channels: int, mode: str, n: int, columns: int | None) -> None:
    images = distinct(n, 5, 4, channels)
    picture = draw.image_grid(images, columns=columns, scale=3)
    assert picture.mode == mode
    across = columns or 8 if n > 1 else 1
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    covered = np.zeros(pixels.shape[:2], bool)
    for index in range(n):
        for y in range(5):
            for x in range(4):
                top, left = 2 + (index // across) * (15 + 2) + 3 * y, 2 + (index % across) * (12 + 2) + 3 * x
                assert (pixels[top : top + 3, left : left + 3] == images[index, y, x]).all()
                covered[top : top + 3, left : left + 3] = True
    assert (pixels[~covered] == 255).all()


@pytest.mark.parametrize(("n", "side"), [(64, 28), (64, 32), (25, 64), (100, 28), (16, 32), (36, 32)])
def test_usual_grids_are_600_to_960_pixels_wide(n: int, side: int) -> None:
    assert 600 <= draw.image_grid(distinct(n, side, side, 1)).width <= 960


def test_a_large_grid_is_not_shrunk() -> None:
    assert draw.image_grid(distinct(4, 600, 600, 3)).size == (2 * 602 + 2, 2 * 602 + 2)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((4, 8, 8, 1), np.float32), InvalidType, r"images: expected a uint8 array .* got float32 array"),
        ([[1]], InvalidType, "got list"),
        (np.zeros((4, 8, 8), np.uint8), InvalidValue, r"got \(4, 8, 8\)"),
        (np.zeros((4, 3, 8, 8), np.uint8), InvalidValue, "C 1 or 3"),
        (np.zeros((0, 8, 8, 1), np.uint8), InvalidValue, "at least 1"),
    ],
)
def test_what_is_no_set_of_images_is_refused(images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draw.image_grid(images)


def test_grids_refuse_no_columns_and_no_scale() -> None:
    with pytest.raises(InvalidValue, match="at least one column, got 0"):
        draw.image_grid(distinct(4, 8, 8, 1), columns=0)
    with pytest.raises(InvalidValue, match="scale of at least 1, got 0"):
        draw.image_grid(distinct(4, 8, 8, 1), scale=0)


def test_named_columns_stand_beside_each_other_under_their_names() -> None:
    colour, grey = distinct(3, 16, 16, 3), distinct(3, 16, 16, 1)
    picture = draw.side_by_side({"real A": colour, "made B": grey, "": colour}, scale=5)
    pixels = np.asarray(picture)
    header = picture.height - (3 * 82 + 2)
    for row in range(3):
        for column, images in enumerate((colour, grey, colour)):
            top, left = header + 2 + row * 82, 2 + column * 82
            block = pixels[top : top + 80 : 5, left : left + 80 : 5]
            assert (block == np.broadcast_to(images[row], (16, 16, 3))).all()
    titled = [near(pixels[:header, column * 82 + 4 : column * 82 + 82], INK).any() for column in range(3)]
    assert titled == [True, True, False]


def test_a_long_name_stays_above_its_column() -> None:
    picture = draw.side_by_side({"a": distinct(2, 64, 64, 1), "a name too long": distinct(2, 64, 64, 1)}, scale=1)
    header = np.asarray(picture)[: picture.height - 2 * 66 - 2]
    dark = np.flatnonzero((header < 200).all(axis=2).any(axis=0))
    right = dark[dark > 45]
    assert right.min() >= 66
    assert right.max() < picture.width


def test_columns_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"of one size, got a \(2, 8, 8, 1\), b \(3, 8, 8, 1\)"):
        draw.side_by_side({"a": distinct(2, 8, 8, 1), "b": distinct(3, 8, 8, 1)})
    with pytest.raises(InvalidValue, match="at least one named column"):
        draw.side_by_side({})
    with pytest.raises(InvalidType, match="b: expected a uint8 array"):
        draw.side_by_side({"a": distinct(2, 8, 8, 1), "b": np.zeros((2, 8, 8, 1))})


SQUARE = (-2.0, 2.0, -2.0, 2.0)
CORNERS = np.array([[-1.5, -1.5], [1.5, 1.5]])


def vermilion_at(picture: Image.Image) -> tuple[float, float]:
    """The centre of what is drawn in the generated points' colour within the axes, as pixels from the left and the top."""
    pixels = np.asarray(picture)[60:560, 70:620]
    y, x = np.nonzero(near(pixels, VERMILION, 70))
    return x.mean() + 70, y.mean() + 60


def test_a_generated_point_is_drawn_where_it_is() -> None:
    at = {p: vermilion_at(draw.points(np.array([p]), CORNERS, extent=SQUARE)) for p in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]}
    (x0, y0), (x1, y1), (x2, y2) = at.values()
    assert x1 - x0 == pytest.approx(0.76 * 760 / 4, abs=1.5)
    assert y0 - y2 == pytest.approx(0.80 * 660 / 4, abs=1.5)
    assert abs(y1 - y0) < 1
    assert abs(x2 - x0) < 1


def test_frames_of_one_run_lie_over_each_other(figures: list[Any]) -> None:
    """The frame is the real points', so a generator that has run away, or a critic on another scale, moves nothing."""
    calm = draw.points(np.zeros((3, 2)), CORNERS, surface=lambda p: p[:, 0])
    wild = draw.points(np.full((3, 2), 900.0), CORNERS, surface=lambda p: 1e6 * p[:, 0], arrows=(CORNERS, CORNERS))
    assert calm.size == wild.size
    for first, second in zip(figures[0].axes, figures[1].axes, strict=True):
        assert first.get_position().bounds == second.get_position().bounds
    limits = [figure.axes[0].get_xlim() + figure.axes[0].get_ylim() for figure in figures]
    assert limits[0] == limits[1]
    left, right, bottom, top = limits[0]
    assert left < -1.5 < 1.5 < right
    assert bottom < -1.5 < 1.5 < top


def test_the_surface_is_asked_over_the_frame_and_drawn_the_right_way_up() -> None:
    asked: list[Array] = []

    def height(where: Array) -> Array:
        asked.append(where)
        return where[:, 1]

    pixels = np.asarray(draw.points(CORNERS, CORNERS, surface=height, extent=SQUARE))
    assert asked[0].dtype == np.float32
    np.testing.assert_allclose(asked[0].min(axis=0), [-2, -2])
    np.testing.assert_allclose(asked[0].max(axis=0), [2, 2])
    column = pixels[60:560, 345].astype(int).sum(axis=1)
    assert column[10] < column[250] < column[-10]  # high values are dark, and they are at the top


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_flat_or_broken_surface_is_drawn_all_the_same(value: float) -> None:
    assert draw.points(CORNERS, CORNERS, surface=lambda p: np.full(len(p), value)).size == (760, 660)


def test_arrows_point_along_the_gradient_and_say_their_length(figures: list[Any]) -> None:
    nowhere = np.full((1, 2), 99.0)
    for direction in ((1.0, 0.0), (-1.0, 0.0)):
        vectors = 3e-5 * np.array([direction])
        picture = draw.points(nowhere, nowhere, arrows=(np.zeros((1, 2)), vectors), extent=SQUARE)
        x = np.nonzero(near(np.asarray(picture)[60:560, 70:620], INK))[1] + 70 - (0.075 + 0.38) * 760
        assert np.sign(x.mean()) == direction[0]
        assert 15 < np.abs(x).max() < 30
    assert legend(figures[0].axes[0])[-1] == "gradient, median length 3e-05"


def test_a_vanished_gradient_is_a_ring_and_counted(figures: list[Any]) -> None:
    vectors = np.array([[0.0, 0.0], [1e-12, 0.0], [math.nan, 1.0], [0.0, 2.0]])
    draw.points(CORNERS, CORNERS, arrows=(np.zeros((4, 2)), vectors), extent=SQUARE)
    assert legend(figures[0].axes[0])[-2:] == ["gradient, median length 2", "no gradient: 3 of 4"]
    draw.points(CORNERS, CORNERS, arrows=(np.zeros((2, 2)), np.zeros((2, 2))), extent=SQUARE)
    assert legend(figures[1].axes[0])[-1] == "no gradient: 2 of 2"
    assert not any("gradient," in text for text in legend(figures[1].axes[0]))


def test_points_that_are_not_finite_do_not_move_the_frame() -> None:
    broken = np.array([[math.nan, 0.0], [math.inf, 1.0], [0.0, 0.0]])
    assert draw.points(broken, np.vstack([CORNERS, broken])).size == (760, 660)
    assert draw.points(broken[:1], broken[:1]).size == (760, 660)


def test_points_of_another_dimension_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"fake: expected points \(n, 2\), got \(4, 3\)"):
        draw.points(np.zeros((4, 3)), CORNERS)
    with pytest.raises(InvalidValue, match=r"arrow vectors: .* got \(2,\)"):
        draw.points(CORNERS, CORNERS, arrows=(CORNERS, np.zeros(2)))


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "kimg": step * 0.064,
        "seconds": step * 0.1,
        "images_per_second": 500.0 + step % 3,
        "critic/adversarial": 1.0 / (1 + step),
        "generator/adversarial": 1.0 + step / 10,
        "D(real)": 0.7,
        "D_B(fake)": 0.3,
        "critic/grad_norm": 2.0**-step,
        **more,
    }


def drawn(figures: list[Any]) -> dict[str, Any]:
    return {axes.get_title(loc="left"): axes for axes in figures[-1].axes}


def test_curves_have_a_panel_for_each_thing(figures: list[Any]) -> None:
    draw.curves([row(step, **{"critic/penalty": 0.1, "metric/FD[cnn]": 5.0}) for step in range(1, 9)], title="a run")
    panels = drawn(figures)
    assert list(panels) == ["critic loss", "generator loss", "FD[cnn]", "critic's output", "gradient norm", "images/s"]
    assert legend(panels["critic loss"]) == ["adversarial", "penalty"]
    assert legend(panels["critic's output"]) == ["D(real)", "D_B(fake)"]
    assert legend(panels["gradient norm"]) == ["critic"]
    assert panels["gradient norm"].get_yscale() == "log"
    assert panels["images/s"].get_ylim()[0] == 0
    assert len({axes.get_xlim() for axes in panels.values()}) == 1


def test_the_raw_line_is_the_log(figures: list[Any]) -> None:
    draw.curves([row(step) for step in range(1, 9)])
    raw = drawn(figures)["generator loss"].lines[0]
    np.testing.assert_array_equal(raw.get_xdata(), range(1, 9))
    np.testing.assert_allclose(raw.get_ydata(), 1.0 + np.arange(1, 9) / 10)


def test_what_is_not_finite_is_marked_and_what_is_missing_is_not(figures: list[Any]) -> None:
    rows = [row(step) for step in range(1, 8)]
    rows[2]["critic/adversarial"] = math.nan
    rows[4]["critic/adversarial"] = None
    rows[5]["critic/adversarial"] = math.inf
    del rows[0]["critic/adversarial"]
    draw.curves(rows)
    panel = drawn(figures)["critic loss"]
    crosses = [line for line in panel.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[3, 5, 6]]
    assert legend(panel) == ["adversarial", "not finite (3)"]
    assert list(panel.lines[0].get_xdata()) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1}],
        [{"kimg": 1.0, "critic/loss": 1.0}],
        [row(1)],
        [row(1, **{"critic/adversarial": math.nan, "critic/grad_norm": 0.0})],
        [row(step, **{"critic/adversarial": math.nan, "critic/grad_norm": math.nan}) for step in range(50)],
        [row(step, note="text") for step in range(3)],
    ],
)
def test_poor_logs_still_give_a_picture(rows: list[dict[str, Any]]) -> None:
    picture = draw.curves(rows, title="x")
    assert picture.width >= 600
    assert (np.asarray(picture) < 128).any()


def test_a_few_extremes_do_not_flatten_the_rest_and_are_counted(figures: list[Any]) -> None:
    rows = [row(step) for step in range(1, 101)]
    rows[0]["generator/adversarial"] = 1e6
    draw.curves(rows)
    panel = drawn(figures)["generator loss"]
    assert panel.get_ylim()[1] < 100
    assert panel.get_ylim()[0] < 1.2 < 10.9 < panel.get_ylim()[1]
    assert [text.get_text() for text in panel.texts] == ["1 beyond the frame"]


def test_a_count_that_stays_zero_gets_no_panel(figures: list[Any]) -> None:
    draw.curves([row(step, skipped=0) for step in range(4)])
    assert "skipped" not in drawn(figures)
    draw.curves([row(step, skipped=step // 3) for step in range(4)])
    assert "skipped" in drawn(figures)


def test_smoothing_is_a_centred_mean() -> None:
    np.testing.assert_allclose(draw._smoothed(np.full(90, 3.0)), 3.0)
    ramp = np.arange(300.0)
    np.testing.assert_allclose(draw._smoothed(ramp)[20:-20], ramp[20:-20])
    noise = np.random.default_rng(0).normal(size=300)
    expected = [noise[max(0, i - 10) : i + 11].mean() for i in range(300)]
    np.testing.assert_allclose(draw._smoothed(noise), expected)
    noise[100] = math.nan
    smooth = draw._smoothed(noise)
    assert math.isnan(smooth[100])
    assert smooth[101] == pytest.approx(np.nanmean(noise[91:112]))


def test_importing_is_light_and_drawing_leaves_pyplot_alone() -> None:
    script = (
        "import sys\nfrom ganfast.engine import draw, progress, report, runfolder\n"
        "heavy = {'PIL', 'matplotlib', 'rich', 'scipy', 'tensorboard'} & set(sys.modules)\nassert not heavy, heavy\n"
        "draw.curves([{'step': 1, 'critic/loss': 1.0}])\nassert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
