"""Tests with the tile of a lesser processor: each in a process of its own, because a tile is chosen once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TILES = ["baseline", "avx2", "avx512"]


def run(tile: str, script: str) -> None:
    """Run Python that may import the tests of ops; raises AssertionError with what it said unless it ends well."""
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests, tests / "ops", tests.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "GANFAST_TILE": tile}
    done = subprocess.run([sys.executable, "-c", f"{script}; print('ran')"], env=environment, capture_output=True, text=True)
    assert done.stdout == "ran\n", done.stderr[-4000:]
