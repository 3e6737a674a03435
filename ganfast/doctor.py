"""``ganfast doctor``: what was built, what runs here, and why not the rest. It looks and never changes anything."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ganfast import _build as build
from ganfast import backends
from ganfast._version import __version__
from ganfast.backends import AVAILABLE, TABLE
from ganfast.errors import NotWritable

Rows = list[tuple[str, str]]

REQUIRED = ("torch", "numpy", "safetensors", "pillow", "rich", "click", "matplotlib")
OPTIONAL = {"tensorboard": "event files beside each run", "triton": "Triton kernels"}

# op -> date, device and commit of its latest run on a GPU; compiling or emulating one is not running it
RAN_ON_GPU: Mapping[str, str] = {}


def report(verbose: bool = False) -> str:
    """The whole report as aligned plain text; ``verbose`` adds the versions of everything and what has run on a GPU."""
    table = backends()
    reasons = [(f"{op}, {name}", why) for op, row in table.items() for name, why in row.items() if why != AVAILABLE]
    sections = [
        f"ganfast {__version__}",
        _section("This machine", _machine()),
        _section("Build", _build()),
        _matrix(table),
        _section("Why not", reasons),
        _section("Data", _data()),
        _section("Optional packages", [(name, _optional(name, use)) for name, use in OPTIONAL.items()]),
    ]
    if verbose:
        sections += [
            _section("Required packages", [(name, _version(name) or "missing") for name in REQUIRED]),
            _section("Last run on a GPU", [(op, RAN_ON_GPU.get(op, "never ran on a GPU")) for op in TABLE]),
        ]
    return "\n\n".join(section for section in sections if section)


def _machine() -> Rows:
    return [
        ("Python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        ("CPU", _cpu()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()} kernels"),
        *_cuda(),
    ]


def _cpu() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{usable} of {os.cpu_count()} cores usable"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()}, {cores}"
    facts = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    flags = facts.get("flags", "").split()
    wanted = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX-bf16": "amx_bf16"}
    sets = ", ".join(f"{name} {'yes' if flag in flags else 'no'}" for name, flag in wanted.items())
    return f"{facts.get('model name', platform.machine())}, {cores}, {sets}"


def _cuda() -> Rows:
    if not torch.backends.cuda.is_built():
        return [("CUDA", f"no: torch {torch.__version__} is a build without CUDA")]
    if not torch.cuda.is_available():
        return [("CUDA", f"no: torch has CUDA {torch.version.cuda}, and found no usable device or driver")]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        (f"cuda:{i}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}, CUDA {torch.version.cuda}")
        for i, p in enumerate(found)
    ]


def _compiler() -> list[str]:
    """setup.py's rule, once more because setup.py is not installed; a test holds the two together."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    configured = shlex.split(sysconfig.get_config_var("CXX") or "")
    return configured if configured and shutil.which(configured[0]) else ["c++"]


def _nvcc() -> str:
    """The same of nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for path in map(shutil.which, candidates) if path), "nvcc")


def _build() -> Rows:
    libraries = {name: build.status(library) for library, name in build.LIBRARIES.items()}
    return [
        *((name, f"{'built' if built else 'not built'}: {detail}") for name, (built, detail) in libraries.items()),
        ("C++ compiler", _version_line(_compiler(), "")),
        ("nvcc", _version_line([_nvcc()], "release")),
    ]


def _version_line(program: list[str], word: str) -> str:
    """The first line with ``word`` in it that a program prints of its version."""
    try:
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "not found"
    return next((line.strip() for line in done.stdout.splitlines() if word in line), "found, of unknown version")


def _data() -> Rows:
    from ganfast.data.cache import folder

    try:
        place = folder(None)
        existing = next(parent for parent in (place, *place.parents) if os.path.exists(parent))
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        cache = f"{place} ({'writable' if writable else 'not writable: data sets stay in memory'})"
    except NotWritable as error:
        cache = f"none: {error}; data sets stay in memory"
    embedded = importlib.resources.files("ganfast.data").joinpath("embedded")
    files = sorted(entry.name for entry in embedded.iterdir()) if embedded.is_dir() else []
    return [
        ("cache", cache),
        ("embedded", ", ".join(name for name in files if name.endswith(".gz")) or "missing: install ganfast again"),
    ]


def _optional(name: str, use: str) -> str:
    return _version(name) or f"not installed: {use}; pip install 'ganfast[{name}]'"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _section(title: str, rows: Rows) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)]) if rows else ""


def _matrix(table: Mapping[str, Mapping[str, str]]) -> str:
    """Ops by backends: yes, no, or a dash where the op has no such backend."""
    columns = [name for name in ("reference", "cpp", "cuda", "triton") if any(name in row for row in table.values())]

    def cells(row: Mapping[str, str]) -> Iterable[str]:
        return ("-" if name not in row else "yes" if row[name] == AVAILABLE else "no" for name in columns)

    width = max(map(len, [*columns, "yes"])) + 2
    head = ("", "".join(f"{name:<{width}}" for name in columns).rstrip())
    return _section(
        "Ops and backends", [head, *((op, "".join(f"{c:<{width}}" for c in cells(row)).rstrip()) for op, row in table.items())]
    )
