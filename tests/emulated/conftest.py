"""Needs g++ and its sanitizers; without them the tests are not collected, unless GANFAST_REQUIRE_BUILD=1 asks for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def runtime(library: str) -> Path | None:
    """One of g++'s own shared libraries."""
    if not shutil.which("g++"):
        return None
    asked = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True)
    found = Path(asked.stdout.strip())
    return found.resolve() if found.is_absolute() and found.exists() else None


# What Python must load before anything else: the address sanitizer, and the exceptions that it is to see.
LIBRARIES = [runtime("libasan.so"), runtime("libstdc++.so")]

if None in LIBRARIES and os.environ.get("GANFAST_REQUIRE_BUILD") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def preloaded() -> str:
    assert None not in LIBRARIES, "g++, its libasan.so or its libstdc++.so is missing"
    return " ".join(map(str, LIBRARIES))
