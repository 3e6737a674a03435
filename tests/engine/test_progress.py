from __future__ import annotations

import io
import math
import re
import sys

import pytest

from ganfast.engine.progress import LINES, Progress, Rate, losses


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def train(progress: Progress, clock: Clock, steps: range, seconds: float = 0.5) -> None:
    with progress:
        for step in steps:
            clock.now += seconds
            progress.update(step, {"critic/adversarial": 1.0, "critic/penalty": 0.25, "generator/adversarial": -2.0})


def test_a_rate_is_images_over_seconds_since_the_last_mark(clock: Clock) -> None:
    rate = Rate(clock)
    rate.add(640)
    clock.now += 2
    assert rate.mark() == 320
    rate.add(100)
    clock.now += 4
    assert rate.mark() == 25


def test_looking_at_a_rate_closes_nothing(clock: Clock) -> None:
    rate = Rate(clock)
    rate.add(300)
    clock.now += 3
    assert rate.per_second == 100
    clock.now += 3
    assert rate.per_second == 50
    assert rate.mark() == 50


def test_a_pause_without_images_leaves_the_speed_as_it_was(clock: Clock) -> None:
    rate = Rate(clock)
    rate.add(300)
    clock.now += 3
    rate.mark()
    clock.now += 60
    assert rate.mark() == 0
    assert rate.per_second == 100


def test_a_rate_without_time_or_images_is_zero(clock: Clock) -> None:
    rate = Rate(clock)
    assert rate.per_second == 0
    rate.add(10)
    assert rate.mark() == 0


def test_lines_say_step_kimg_losses_speed_and_time_left(clock: Clock) -> None:
    stream = io.StringIO()
    train(Progress(100, unit_images=64, description="a run", stream=stream, rate=Rate(clock)), clock, range(1, 51))
    line = stream.getvalue().splitlines()[-1]
    assert line == "a run: step 50/100 | 3.2 kimg | critic 1.250  generator -2.000 | 128 images/s | 0:25 left"


def test_the_first_step_says_no_time_left_where_it_took_under_a_second(clock: Clock) -> None:
    stream = io.StringIO()
    train(Progress(100, unit_images=64, description="run", stream=stream, rate=Rate(clock)), clock, range(1, 51))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("128 images/s") and all("left" in line for line in lines[1:])


@pytest.mark.parametrize("steps", [1, 3, 20, 21, 1000, 12345])
def test_a_run_prints_about_twenty_lines_the_first_and_the_last_among_them(clock: Clock, steps: int) -> None:
    stream = io.StringIO()
    train(Progress(steps, unit_images=1, description="run", stream=stream, rate=Rate(clock)), clock, range(1, steps + 1))
    printed = [int(step) for step in re.findall(r"step (\d+)/", stream.getvalue())]
    assert printed[0] == 1
    assert printed[-1] == steps
    assert len(printed) == len(set(printed)) <= LINES + 2
    assert len(printed) >= min(steps, LINES // 2)


def test_a_resumed_run_counts_from_where_it_starts(clock: Clock) -> None:
    stream = io.StringIO()
    train(Progress(40, start=30, unit_images=10, description="run", stream=stream, rate=Rate(clock)), clock, range(31, 41), 2.0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "step 31/40 | 0.3 kimg" in lines[0]
    assert "5 images/s | 0:18 left" in lines[0]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_nothing_left_to_do_is_fine(stream: io.StringIO) -> None:
    with Progress(500, start=500, unit_images=64, description="run", stream=stream):
        pass
    assert "500/500" in plain(stream.getvalue())


def test_hours_are_hours(clock: Clock) -> None:
    stream = io.StringIO()
    train(Progress(7500, unit_images=1, description="run", stream=stream, rate=Rate(clock)), clock, range(1, 2), 1.0)
    assert "2:04:59 left" in stream.getvalue()


def test_progress_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2, unit_images=1, description="run") as progress:
        progress.update(1, {"critic/loss": 1.0})
        progress.note("checkpoint saved")
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1/2" in err
    assert "checkpoint saved\n" in err


def test_a_terminal_gets_a_bar_and_stdout_is_left_alone(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stream, before = Terminal(), sys.stdout
    progress = Progress(4, unit_images=500, description="a run", stream=stream, rate=Rate(clock))
    with progress:
        assert sys.stdout is before
        clock.now += 2
        progress.update(2, {"critic/adversarial": 1.5, "metric/x": 7.0, "critic/grad_norm": 9.0})
        progress.note("saved [step-2]")
    shown = plain(stream.getvalue())
    assert "saved [step-2]" in shown
    for part in ("a run", "2/4", "critic 1.500", "500 images/s", "1.0 kimg", "0:02 left"):
        assert part in shown
    assert "7.0" not in shown
    assert "9.0" not in shown


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(1, unit_images=1, description="run", stream=stream) as progress:
        progress.update(1, {})
    assert stream.getvalue().startswith("run: step 1/1 |")
    assert "\x1b" not in stream.getvalue()


def test_a_bar_is_taken_down_when_training_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress(9, unit_images=1, description="run", stream=stream):
        raise ZeroDivisionError
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l")  # the cursor is back


def test_a_closed_stream_does_not_stop_training() -> None:
    stream = io.StringIO()
    with Progress(2, unit_images=1, description="run", stream=stream) as progress:
        stream.close()
        progress.update(1, {})
        progress.note("still here")


def test_losses_are_summed_by_phase_and_nothing_else_is_a_loss() -> None:
    row = {"critic/a": 1.0, "critic/b": 0.5, "critic/grad_norm": 3.0, "metric/fd": 9.0, "D(real)": 0.1, "images_per_second": 5.0}
    assert losses(row) == {"critic": 1.5}


def test_a_term_that_is_not_finite_shows() -> None:
    stream = io.StringIO()
    with Progress(1, unit_images=1, description="run", stream=stream) as progress:
        progress.update(1, {"critic/a": math.nan, "critic/b": 1.0, "generator/a": math.inf})
    assert "critic nan  generator inf" in stream.getvalue()


def test_an_update_without_values_keeps_the_last_ones() -> None:
    stream = io.StringIO()
    with Progress(2, unit_images=1, description="run", stream=stream) as progress:
        progress.update(1, {"critic/a": 1.0})
        progress.update(2, {})
    assert stream.getvalue().splitlines()[-1].startswith("run: step 2/2 | 0.0 kimg | critic 1.000")
