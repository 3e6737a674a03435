"""Which of several ways to compute the same thing is the fastest here: measured once, then remembered.

What was measured lies in ``tuning.json`` in the folder of ``$GANFAST_CACHE``, by processor, number of threads, version of
PyTorch and build of ganfast's kernels, or by GPU and the versions of what computes there, so that every later process of this
machine chooses alike: two ways round differently, and a resumed run must not. Where that file cannot be written, each process
measures for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ganfast.errors import Error
from ganfast.files import write_atomically

ROUNDS, MOST = 3, 12  # at least and at most; whatever disturbs a measurement makes it slower, and the fastest call counts
AGREE, NEAR = 1.05, 1.5  # times: what the two fastest calls of a candidate may differ by, and who is in question at all
CALLS = 10  # in a row on a GPU
CPU = torch.device("cpu")

_known: dict[tuple[str, str], str] = {}  # by machine and name


def fastest(name: str, candidates: Mapping[str, Callable[[], object]], device: torch.device = CPU) -> str:
    """The key of the fastest of ``candidates``, all of which compute what ``name`` stands for on ``device``.

    While a CUDA graph is being captured nothing can be measured: what is not known then is the first of them, this once.
    """
    on_gpu = device.type == "cuda"
    machine = _gpu(device.index) if on_gpu else _machine(torch.get_num_threads())
    if (machine, name) not in _known:
        _known.update({(machine, each): way for each, way in _read().get(machine, {}).items() if isinstance(way, str)})
    if _known.get((machine, name)) not in candidates:
        if on_gpu and torch.cuda.is_current_stream_capturing():
            return next(iter(candidates))
        _known[machine, name] = _stored(machine, name, candidates, _measured(candidates, _seconds_on_gpu if on_gpu else _seconds))
    return _known[machine, name]


def _measured(candidates: Mapping[str, Callable[[], object]], seconds: Callable[[Callable[[], object]], float]) -> str:
    times: dict[str, list[float]] = {key: [] for key in candidates}
    for call in candidates.values():
        call()
    for number in range(MOST):
        for key, call in candidates.items():
            times[key] = sorted([*times[key], seconds(call)])
        best = min(mine[0] for mine in times.values())
        if number + 1 >= ROUNDS and all(mine[1] <= AGREE * mine[0] for mine in times.values() if mine[0] <= NEAR * best):
            break
    return min(times, key=lambda key: times[key][0])


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _seconds_on_gpu(call: Callable[[], object]) -> float:
    """Between two events, of several calls: of one alone, the host's part would count where it is hidden behind other work."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / CALLS


@functools.cache
def _file() -> Path | None:
    from ganfast.data.cache import folder

    with contextlib.suppress(Error):
        return folder(None) / "tuning.json"
    return None


@functools.cache
def processor() -> str:
    """Its name, and the numbers of its family, model and stepping: a virtual machine may give one name to several."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()  # of the first of its cores
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        if found := [said[key] for key in ("model name", "cpu family", "model", "stepping") if key in said]:
            return " ".join(found)
    return platform.processor() or platform.machine()


@functools.cache
def _machine(threads: int) -> str:
    return f"{processor()}, {threads} threads, torch {torch.__version__}, kernels {_build()}"


def _build() -> str:
    """What tells one build of the CPU's kernels from another."""
    with contextlib.suppress(OSError):
        return hashlib.blake2b(Path(__file__).with_name("_C.so").read_bytes(), digest_size=4).hexdigest()
    return "none"


@functools.cache
def _gpu(index: int | None) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    versions = {"torch": torch.__version__, "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["triton"] = importlib.metadata.version("triton")
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{torch.cuda.get_device_name(index)} ({major}.{minor}), {said}"


def _read() -> dict[str, dict[str, Any]]:
    file = _file()
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text()) if file else {}
        if isinstance(found, dict) and all(isinstance(choices, dict) for choices in found.values()):
            return found
    return {}


def _stored(machine: str, name: str, candidates: Collection[str], measured: str) -> str:
    """What holds from now on: ``measured``, unless another process was the first."""
    with _alone():
        found = _read()
        choices = found.setdefault(machine, {})
        if (earlier := choices.get(name)) in list(candidates):
            return str(earlier)
        choices[name] = measured
        if file := _file():
            with contextlib.suppress(Error, OSError):
                write_atomically(file, json.dumps(found, indent=1, sort_keys=True).encode())
    return measured


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """No other process reads and writes meanwhile, where locking is to be had: what one writes another would lose."""
    with contextlib.ExitStack() as stack:
        if file := _file():
            with contextlib.suppress(OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(file.with_suffix(".lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
