"""What the install built, as it wrote it down: ``_build_info.json`` beside this file.

:func:`report` says it in a few lines, which is what ``make`` prints after an install.
"""

from __future__ import annotations

import json
from pathlib import Path

RECORD = Path(__file__).with_name("_build_info.json")
LIBRARIES = {"_host": "C++ host module", "_C": "CPU kernels", "_C_cuda": "CUDA kernels"}


def why_not_built(library: str) -> str:
    """Why the install went on without a library; empty if it built it or if nothing was ever installed."""
    try:
        reason = json.loads(RECORD.read_text())[library]["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(reason)


def host_status() -> tuple[bool, str]:
    """Whether ``ganfast._host`` loads; then what compiled it, otherwise why not: the recorded reason before Python's own."""
    try:
        from ganfast import _host

        info = _host.build_info()
    except (ImportError, AttributeError) as error:
        return False, why_not_built("_host") or f"{error}; build it with: pip install ."
    return True, ", ".join(f"{name} {value}" for name, value in info.items())


def status(library: str) -> tuple[bool, str]:
    """Whether a library of :data:`LIBRARIES` is there, and a detail: what compiled it, or why it is not. Loads no kernels."""
    if library == "_host":
        return host_status()
    if RECORD.with_name(f"{library}.so").exists():
        return True, "on LibTorch's stable ABI"
    return False, why_not_built(library) or "build it with: pip install ."


def report() -> str:
    lines = []
    for library, name in LIBRARIES.items():
        built, detail = status(library)
        lines.append(f"ganfast: {name} {'built' if built else 'not built'} ({detail})")
    return "\n".join(lines)
