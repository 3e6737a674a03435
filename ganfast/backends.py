"""Which backend of each op runs here: the table that ``ganfast.backends()`` and ``ganfast doctor`` show, and the choice from it.

Kernels are chosen once in a process, when they are first needed:

    GANFAST_CPU=cpp|reference              default: cpp
    GANFAST_CUDA=cuda|triton|reference     default: cuda, otherwise triton
    GANFAST_STRICT=1                       an error where the default would fall back

A backend that is asked for and missing raises Unavailable; a default that is missing says so in one warning, and the next one
does its work. Nothing is loaded before it is needed, so importing this costs nothing.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from ganfast import _build
from ganfast.errors import InvalidValue, Unavailable, near

AVAILABLE = "available"
CHOICES = {"GANFAST_CPU": ("cpp", "reference"), "GANFAST_CUDA": ("cuda", "triton", "reference")}
LIBRARIES = {"cpp": "_C", "cuda": "_C_cuda"}  # loading one registers its kernels with PyTorch's dispatcher

_failed: dict[str, str] = {}  # libraries that are there and did not load, with the reason


# ---- the choice


@functools.cache
def chosen(variable: str) -> str:
    """The backend that serves a device, loaded: the one that the environment variable names, otherwise the first that works."""
    choices = CHOICES[variable]
    asked = os.environ.get(variable, "auto")
    if asked != "auto":
        if asked not in choices:
            raise InvalidValue(f"{variable}: expected auto, {', '.join(choices)}, got {asked!r}{near(asked, choices)}")
        if (why := _load(asked)) != AVAILABLE:
            raise Unavailable(f"{variable}={asked}: {why}")
        return asked
    found = next(choice for choice in choices if _load(choice) == AVAILABLE)
    if found != choices[0]:
        missing = f"{choices[0]} kernels are not available ({status(choices[0])})"
        if os.environ.get("GANFAST_STRICT") == "1":
            raise Unavailable(f"GANFAST_STRICT=1: the {missing}")
        warnings.warn(f"ganfast: the {missing}; {found} does their work", RuntimeWarning, stacklevel=2)
    return found


def triton_serves() -> bool:
    """Whether Triton's kernels are a way for ops without kernels in CUDA C++: where they run, and nothing else is asked for."""
    return os.environ.get("GANFAST_CUDA", "auto") in ("auto", "triton") and status("triton") == AVAILABLE


def status(backend: str) -> str:
    """``"available"``, or why a backend (reference, cpp, cuda, triton) does not run here. Loads nothing."""
    import torch

    if backend == "reference":
        return AVAILABLE
    if backend != "cpp" and not torch.cuda.is_available():
        return "no CUDA device"
    if backend == "triton":
        return AVAILABLE if importlib.util.find_spec("triton") else "triton is not installed; pip install 'ganfast[triton]'"
    library = LIBRARIES[backend]
    if not _file(library).exists():
        return _build.why_not_built(library) or f"ganfast/{library}.so is not built; build it with: pip install ."
    return _failed.get(backend, AVAILABLE)


def _load(backend: str) -> str:
    import torch

    if status(backend) == AVAILABLE and backend in LIBRARIES:
        try:
            torch.ops.load_library(str(_file(LIBRARIES[backend])))
        except OSError as error:
            _failed[backend] = f"ganfast/{LIBRARIES[backend]}.so does not load: {error.__cause__ or error}"
    return status(backend)


def _file(library: str) -> Path:
    return Path(__file__).with_name(f"{library}.so")


# ---- the table


def _reference() -> str:
    return AVAILABLE


def _host() -> str:
    from ganfast.data import host

    return AVAILABLE if host.AVAILABLE else _build.why_not_built("_host") or host.WHY_NOT


def _kernels(backend: str, variable: str) -> Callable[[], str]:
    def probe() -> str:
        if status(backend) == AVAILABLE:
            chosen(variable)  # a library that is there may still not load
        return status(backend)

    return probe


_KERNELS = {
    "reference": _reference,
    "cpp": _kernels("cpp", "GANFAST_CPU"),
    "cuda": _kernels("cuda", "GANFAST_CUDA"),
    "triton": _kernels("triton", "GANFAST_CUDA"),
}

TABLE: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "gather_images": {"reference": _reference, "cpp": _host, "triton": _KERNELS["triton"]},
    "permuted": {"reference": _reference, "cpp": _host},
    "spectral_norm": _KERNELS,
    "gradient_penalty": _KERNELS,
    "batch_norm": _KERNELS,
    "adam": {name: _KERNELS[name] for name in ("reference", "cpp", "cuda")},
    "convolution": {name: _KERNELS[name] for name in ("reference", "cpp", "triton")},
    "conv_norm": {name: _KERNELS[name] for name in ("reference", "cpp", "triton")},  # in C++ one gradient of it
    "tanh": {name: _KERNELS[name] for name in ("reference", "cpp")},
    "fuse": {"reference": _reference},
    "nuclear_norm": {name: _KERNELS[name] for name in ("reference", "cpp")},
    "covariance_factor": {name: _KERNELS[name] for name in ("reference", "cpp")},
    "covariance_update": {name: _KERNELS[name] for name in ("reference", "cpp")},
    "pair_distances": {name: _KERNELS[name] for name in ("reference", "cpp")},
}


def backends() -> dict[str, dict[str, str]]:
    """``{op: {backend: "available" or the reason why not}}``, for every op and every backend that this release has."""
    return {op: {name: probe() for name, probe in probes.items()} for op, probes in TABLE.items()}
