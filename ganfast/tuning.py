"""Which of several ways to compute the same thing is the fastest here: measured once, then remembered.

What was measured lies in ``tuning.json`` in the folder of ``$GANFAST_CACHE``, by processor, number of threads and version of
PyTorch, so that every later process of this machine chooses alike: two ways round differently, and a resumed run must not. Where
that file cannot be written, each process measures for itself.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ganfast.errors import Error
from ganfast.files import write_atomically

ROUNDS = 3  # of which the fastest counts: whatever disturbs a measurement makes it slower

_known: dict[tuple[str, str], str] = {}  # by machine and name


def fastest(name: str, candidates: Mapping[str, Callable[[], object]]) -> str:
    """The key of the fastest of ``candidates``, all of which compute what ``name`` stands for on this machine."""
    machine = _machine(torch.get_num_threads())
    if (machine, name) not in _known:
        _known.update({(machine, each): way for each, way in _read().get(machine, {}).items() if isinstance(way, str)})
    if _known.get((machine, name)) not in candidates:
        _known[machine, name] = _stored(machine, name, candidates, _measured(candidates))
    return _known[machine, name]


def _measured(candidates: Mapping[str, Callable[[], object]]) -> str:
    times = dict.fromkeys(candidates, float("inf"))
    for call in candidates.values():
        call()
    for _ in range(ROUNDS):
        for key, call in candidates.items():
            begin = time.perf_counter()
            call()
            times[key] = min(times[key], time.perf_counter() - begin)
    return min(times, key=times.__getitem__)


@functools.cache
def _file() -> Path | None:
    from ganfast.data.cache import folder

    with contextlib.suppress(Error):
        return folder(None) / "tuning.json"
    return None


@functools.cache
def _machine(threads: int) -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return f"{processor}, {threads} threads, torch {torch.__version__}"


def _read() -> dict[str, dict[str, Any]]:
    file = _file()
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text()) if file else {}
        if isinstance(found, dict) and all(isinstance(choices, dict) for choices in found.values()):
            return found
    return {}


def _stored(machine: str, name: str, candidates: Collection[str], measured: str) -> str:
    """What holds from now on: ``measured``, unless another process was the first."""
    found = _read()
    choices = found.setdefault(machine, {})
    if (earlier := choices.get(name)) in list(candidates):
        return str(earlier)
    choices[name] = measured
    if file := _file():
        with contextlib.suppress(Error, OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(found, indent=1, sort_keys=True).encode())
    return measured
