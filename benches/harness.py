"""How everything is timed: providers of the same result take turns, and the median of many turns counts.

A bench supplies a setup, as a :class:`Case`: what to call for each provider, what the call must read and write, and which
providers are the stock ones to beat. The harness supplies the rest: warm-up, turns in changing order so that drift hits all
alike, a cold second-level cache on a GPU, device and versions, the measured ceilings that bytes/s and FLOP/s are held against,
and the CSV.
"""

from __future__ import annotations

import csv
import datetime
import functools
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ganfast import tuning
from ganfast.errors import InvalidValue, NotWritable

FIELDS = (
    *("bench", "case", "provider", "median_us", "low_us", "high_us", "turns", "ratio", "against"),
    *("bytes", "share_of_copy", "flops", "share_of_matmul", "dtype", "device", "threads", "torch", "commit", "date"),
)


@dataclass(frozen=True)
class Case:
    """Calls that do the same work.

    ``stock`` names the providers to beat: ``ratio`` is the fastest one's median over ours. ``bare`` names one whose time is
    taken off all others, turn by turn, where only the difference matters. ``bytes`` and ``flops`` are the least that one call
    can move and do.
    """

    bench: str
    name: str
    providers: Mapping[str, Callable[[], Any]]
    stock: tuple[str, ...]
    bare: str = ""
    bytes: int = 0
    flops: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def run(cases: Iterable[Case], out: Path | None, *, seconds: float, show: Callable[[str], Any]) -> None:
    """Measure every case, say so line by line, and append the rows to ``out``."""
    for case in cases:
        measured = measure(case, seconds)
        for row in measured:
            copy = f"  {row['share_of_copy']:.0%} of a copy" if row["share_of_copy"] else ""
            ratio = f"  {row['ratio']:.2f}x {row['against']}" if row["ratio"] else ""
            spread = f"{row['low_us']:.0f} .. {row['high_us']:.0f}"
            show(f"{case.bench} {case.name:<28} {row['provider']:<22} {row['median_us']:>9.1f} us  ({spread}){ratio}{copy}")
        if out is not None:
            append(out, measured)


def measure(case: Case, seconds: float) -> list[dict[str, Any]]:
    """One row a provider. A median's spread is given by the quartiles of its turns."""
    times = take_turns(case.providers, case.device, seconds)
    if case.bare:
        bare = times.pop(case.bare)
        times = {name: [t - b for t, b in zip(turns, bare, strict=True)] for name, turns in times.items()}
    medians = {name: statistics.median(turns) for name, turns in times.items()}
    against = min(case.stock, key=medians.__getitem__)
    facts = environment(case.device)
    rows = []
    for name, turns in times.items():
        low, _, high = statistics.quantiles(turns, n=4)
        median = medians[name]
        rows.append(
            {
                "bench": case.bench,
                "case": case.name,
                "provider": name,
                "median_us": round(median * 1e6, 2),
                "low_us": round(low * 1e6, 2),
                "high_us": round(high * 1e6, 2),
                "turns": len(turns),
                "ratio": round(medians[against] / median, 3) if name not in case.stock else "",
                "against": against if name not in case.stock else "",
                "bytes": case.bytes or "",
                "share_of_copy": round(case.bytes / median / copy_ceiling(case.device), 3) if case.bytes else "",
                "flops": case.flops or "",
                "share_of_matmul": round(case.flops / median / matmul_ceiling(case.device, case.dtype), 3) if case.flops else "",
                "dtype": str(case.dtype).removeprefix("torch."),
                **facts,
            }
        )
    return rows


def take_turns(providers: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds of every call; each round calls all providers once, in an order of its own."""
    for call in providers.values():
        for _ in range(3):
            call()
    order, times = list(providers), {name: [] for name in providers}  # type: dict[str, list[float]]
    shuffle = random.Random(0).shuffle
    timed = _timed_cuda if device.type == "cuda" else _timed_cpu
    end = time.perf_counter() + seconds * len(order)
    while time.perf_counter() < end or len(times[order[0]]) < 10:
        shuffle(order)
        for name in order:
            times[name].append(timed(providers[name]))
    return times


def _timed_cpu(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _timed_cuda(call: Callable[[], Any]) -> float:
    """By events, with a second-level cache that holds nothing of the last call; host time that the device waits for counts."""
    _flush().zero_()
    torch.cuda.synchronize()
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


_CACHE: dict[Any, Any] = {}


def _once(key: Any, make: Callable[[], Any]) -> Any:
    if key not in _CACHE:
        _CACHE[key] = make()
    return _CACHE[key]


def _flush() -> torch.Tensor:
    buffer: torch.Tensor = _once("flush", lambda: torch.empty(256 * 2**20, dtype=torch.int8, device="cuda"))
    return buffer


def copy_ceiling(device: torch.device) -> float:
    """Bytes/s read and written by a copy far larger than any cache, measured once in this process."""

    def measured() -> float:
        source = torch.randn(64 * 2**20, device=device)
        target = torch.empty_like(source)
        times = take_turns({"copy": lambda: target.copy_(source)}, device, 0.5)["copy"]
        return 2 * source.numel() * source.element_size() / statistics.median(times)

    ceiling: float = _once(("copy", str(device)), measured)
    return ceiling


def matmul_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product in ``dtype``, measured once in this process."""

    def measured() -> float:
        n = 8192 if device.type == "cuda" else 2048
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        times = take_turns({"matmul": lambda: a @ b}, device, 0.5)["matmul"]
        return 2 * n**3 / statistics.median(times)

    ceiling: float = _once(("matmul", str(device), dtype), measured)
    return ceiling


@functools.cache
def _commit() -> str:
    """Asked for once: a table that rows are added to makes the tree a changed one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else tuning.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def check(out: Path | None, fields: Sequence[str] = FIELDS) -> None:
    """Raises NotWritable before anything is measured, InvalidValue where ``out`` is another table."""
    if out is None:
        return
    if out.exists() and out.read_text().partition("\n")[0] != ",".join(fields):
        columns = f"{', '.join(fields[:4])}, ..., {fields[-1]}"
        raise InvalidValue(f"{out} is not a table of this bench: expected the columns {columns}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise NotWritable(f"cannot write {out}")


def append(out: Path, rows: Iterable[Mapping[str, Any]], fields: Sequence[str] = FIELDS) -> None:
    """Add rows to the table, or begin it; what a row does not have stays empty."""
    new = not out.exists()
    with out.open("a", newline="") as file:
        table = csv.DictWriter(file, fields, restval="", lineterminator="\n")
        if new:
            table.writeheader()
        table.writerows(rows)
