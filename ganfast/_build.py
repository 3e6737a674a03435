"""What the install built, as it wrote it down: ``_build_info.json`` beside this file.

``python -m ganfast._build`` says it in one line, which is what ``make`` prints after an install.
"""

from __future__ import annotations

import json
from pathlib import Path

RECORD = Path(__file__).with_name("_build_info.json")


def why_not_built() -> str:
    """Why the install went on without the C++; empty if it built it or if nothing was ever installed."""
    try:
        reason = json.loads(RECORD.read_text())["host"]["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(reason)


def host_status() -> tuple[bool, str]:
    """Whether ``ganfast._host`` loads; then what compiled it, otherwise why not: the recorded reason before Python's own."""
    try:
        from ganfast import _host

        info = _host.build_info()
    except (ImportError, AttributeError) as error:
        return False, why_not_built() or f"{error}; build it with: pip install ."
    return True, ", ".join(f"{name} {value}" for name, value in info.items())


def in_one_line() -> str:
    built, detail = host_status()
    return f"ganfast: C++ built ({detail})" if built else f"ganfast: C++ not built ({detail}); pure Python does its work, slower"


if __name__ == "__main__":
    print(in_one_line())
