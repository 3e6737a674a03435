"""Every benched recipe and batch: which stock modes are the fastest, then these against ganfast in turns, and the table.

A first pass runs every stock mode of a recipe once, at the first batch, mode by mode; the long measuring takes turns between
ganfast in both precisions, the modes that came near the fastest, and the fastest in float32. images/s are real images
shown to the critic. :mod:`.floor` says what the floor is, :mod:`.agreement` how losses are compared, :mod:`.memory` what counts.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganfast.benches import harness
from ganfast.benches.training import agreement, floor, memory, stock
from ganfast.benches.training.stock import Mode
from ganfast.benches.training.work import RECIPES, Work
from ganfast.engine.heap import keep_freed_memory
from ganfast.errors import InvalidValue, near

_LEFT_OUT = ("bytes", "share_of_copy", "flops", "share_of_matmul")
FIELDS = (
    *(name for name in harness.FIELDS if name not in _LEFT_OUT),
    *("images_per_s", "times_floor", "peak_mb", "peak_share", "loss_difference", "stock_difference"),
)
BENCH, FIRST_PASS = "training", "training, first pass"
OURS = {f"ganfast {str(dtype).removeprefix('torch.')}": dtype for dtype in (torch.float32, torch.bfloat16)}
NEAR = 1.2  # times the fastest mode: further apart than a few iterations are by chance
HOPELESS = 2.5  # times the fastest mode so far: such a mode is not looked at any longer

Show = Callable[[str], Any]
Row = dict[str, Any]


def run(
    names: Sequence[str],
    batches: Sequence[int],
    out: Path | None,
    *,
    critic_steps: Sequence[int],
    device: torch.device,
    seconds: float,
    show: Show,
) -> None:
    """Measure, say so line by line, and append the rows to ``out``. Raises InvalidValue for a recipe that is not benched."""
    for name in names:
        if name not in RECIPES:
            raise InvalidValue(f"no recipe {name!r} is benched{near(name, RECIPES)}: there are {', '.join(RECIPES)}")
    _allow_compiling()
    if device.type == "cpu":
        keep_freed_memory()  # as the engine does, but before any stock mode is timed
    for name in names or RECIPES:
        first = Work.of(name, batches[0])
        passed = first_pass(first, device, show)
        append(out, [_first_row(first, mode, times, device) for mode, times in passed.items()])
        chosen = fastest({mode: min(times) for mode, times in passed.items()})
        show(f"{name}: ganfast takes turns with the fastest of {len(passed)} modes: {'; '.join(map(str, chosen))}")
        agreed = {}
        for provider, dtype in OURS.items():
            agreed[provider] = agreement.differences(first, dtype, device)
            show(f"{first}: {provider}, losses of {agreement.STEPS} steps differ by {_told(*agreed[provider])}")
        for batch in batches:
            for steps in critic_steps:
                work = Work.of(name, batch, steps)
                rows = measured(work, chosen, device, seconds)
                if steps == 1:
                    _add_peaks(rows, work, chosen, device, show)
                if work == first:
                    for row in rows:
                        if row["provider"] in agreed:
                            row["loss_difference"], row["stock_difference"] = map(_terms, agreed[row["provider"]])
                for row in rows:
                    show(_line(row))
                append(out, rows)


def first_pass(work: Work, device: torch.device, show: Show) -> dict[Mode, list[float]]:
    """Seconds of four iterations of each stock mode, or of two where that is hopeless; what fails is named and left out."""
    times: dict[Mode, list[float]] = {}
    if work.name == "wgan-gp" and (refused := stock.refusal(work.stock(Mode(), device))):
        show(f"{work}: the penalty stays eager, torch.compile says: {refused}")
    for mode in stock.modes(work.name, device):
        torch.compiler.reset()
        began = time.perf_counter()
        try:
            step = work.stock(mode, device).step
            for _ in range(2):
                _timed(step, device)
            ready = time.perf_counter() - began
            mine = [_timed(step, device) for _ in range(2)]
        except RuntimeError as error:  # what torch.compile cannot do is one
            show(f"{work}: {mode} left out: {str(error).strip().splitlines()[0]}")
            continue
        best = min((min(others) for others in times.values()), default=math.inf)
        if min(mine) < HOPELESS * best:
            mine += [_timed(step, device) for _ in range(2)]
        times[mode] = mine
        show(f"{work}: first pass {mode!s:<45} {min(mine) * 1e3:>9.1f} ms   ({ready:.0f} s to warm up)")
    torch.compiler.reset()
    return times


def fastest(seconds: Mapping[Mode, float]) -> list[Mode]:
    """Those that are near the fastest, and the fastest one in float32: half of the precision is not everybody's choice."""
    order = sorted(seconds, key=seconds.__getitem__)
    near = [mode for mode in order if seconds[mode] <= NEAR * seconds[order[0]]]
    return list(dict.fromkeys([*near, *[mode for mode in order if mode.dtype == torch.float32][:1]]))


def measured(work: Work, modes: Sequence[Mode], device: torch.device, seconds: float) -> list[Row]:
    """One row a provider, the stock ones first, timed in turns."""
    torch.compiler.reset()
    providers: dict[str, Callable[[], Any]] = {str(mode): work.stock(mode, device).step for mode in modes}
    dtypes = {**{str(mode): mode.dtype for mode in modes}, **OURS}
    providers |= {name: work.ours(dtype, device).step for name, dtype in OURS.items()}
    case = harness.Case(BENCH, str(work), providers, stock=tuple(map(str, modes)), device=device)
    recipe, rows = work.recipe(), []
    for timed in harness.measure(case, seconds):
        row = {key: value for key, value in timed.items() if key in FIELDS}
        dtype, median = dtypes[row["provider"]], row["median_us"] / 1e6
        least = floor.seconds(recipe, work.batch, work.critic_steps, dtype, device)
        row |= {"dtype": str(dtype).removeprefix("torch."), "times_floor": round(median / least, 2)}
        rows.append(row | {"images_per_s": round(work.batch * work.critic_steps / median, 2)})
    return rows


def _add_peaks(rows: list[Row], work: Work, modes: Sequence[Mode], device: torch.device, show: Show) -> None:
    """Peak memory of every provider, and the share of ours in that of the stock mode it is held against."""
    providers: dict[str, Mode | torch.dtype] = {**{str(mode): mode for mode in modes}, **OURS}
    peaks = {}
    for name, provider in providers.items():
        peaks[name] = memory.peak(work, provider, device) / 1e6
        show(f"{work}: {name:<45} {peaks[name]:>9.1f} MB at most")
    for row in rows:
        row["peak_mb"] = round(peaks[row["provider"]], 1)
        if row["against"]:
            row["peak_share"] = round(peaks[row["provider"]] / peaks[row["against"]], 3)


def _first_row(work: Work, mode: Mode, times: Sequence[float], device: torch.device) -> Row:
    median, low, high = (round(value * 1e6, 2) for value in (statistics.median(times), min(times), max(times)))
    return {
        **{"bench": FIRST_PASS, "case": str(work), "provider": str(mode), "turns": len(times)},
        **{"median_us": median, "low_us": low, "high_us": high},
        "images_per_s": round(work.batch * work.critic_steps / median * 1e6, 2),
        "dtype": str(mode.dtype).removeprefix("torch."),
        **harness.environment(device),
    }


def _timed(step: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _allow_compiling() -> None:
    """Each mode is compiled for real, frozen and averaged networks alike: none may fall back to eager for being one too many."""
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096


def _terms(differences: Mapping[str, float]) -> str:
    return " ".join(f"{term}={value:.1e}" for term, value in differences.items())


def _told(ours: Mapping[str, float], others: Mapping[str, float]) -> str:
    return f"{_terms(ours)} (stock in its two layouts {_terms(others)})"


def _line(row: Row) -> str:
    ratio = f"  {row['ratio']:.2f}x {row['against']}" if row["ratio"] else ""
    memory = f"  {row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
    spread = f"{row['low_us'] / 1e3:.1f} .. {row['high_us'] / 1e3:.1f}"
    speed = f"{row['median_us'] / 1e3:>8.1f} ms  ({spread})  {row['images_per_s']:.0f} images/s  {row['times_floor']:.1f} floors"
    return f"{row['case']}: {row['provider']:<45} {speed}{memory}{ratio}"


# ---- the table


def check(out: Path | None) -> None:
    """Raises NotWritable before anything is measured, InvalidValue where ``out`` is another table."""
    harness.check(out, FIELDS)


def append(out: Path | None, rows: Sequence[Row]) -> None:
    if out is not None:
        harness.append(out, rows, FIELDS)
