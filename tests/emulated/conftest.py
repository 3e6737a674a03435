"""Needs g++ and its sanitizers; without them the tests are not collected, unless GANFAST_REQUIRE_BUILD=1 asks for them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def sanitizer() -> Path | None:
    """The runtime of g++'s address sanitizer: Python must load it before anything else."""
    if not shutil.which("g++"):
        return None
    asked = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    found = Path(asked.stdout.strip())
    return found.resolve() if found.is_absolute() and found.exists() else None


ASAN = sanitizer()

if ASAN is None and os.environ.get("GANFAST_REQUIRE_BUILD") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def asan() -> Path:
    assert ASAN is not None, "g++ or its libasan.so is missing"
    return ASAN
