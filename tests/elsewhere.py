"""Tests that need a process of their own, one result for each of them in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Outcomes:
    """What tests/spectral_norm_suite.py found, run once with these arguments and environment variables."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        self.done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "spectral_norm_suite.py"), *arguments],
            env={**os.environ, "PYTHONPATH": path, "GANFAST_CPU": "reference", **environment},
            capture_output=True,
            text=True,
        )
        self.wrong: dict[str, str] = {}
        for line in self.done.stdout.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                self.wrong[row["case"]] = row["wrong"]

    def expect(self, case: str) -> None:
        """Fails with the case's traceback, or with how the process ended if that was before the case was done."""
        assert case in self.wrong, f"the process ended with {self.done.returncode} before this case:\n{self.done.stderr[-8000:]}"
        assert not self.wrong[case], self.wrong[case]
