"""Tests that need a process of their own, with a sanitizer preloaded or with Triton's interpreter; their results in this one.

    python tests/elsewhere.py OP emulated LIBRARY     the CUDA kernels' bodies, compiled for the CPU
    python tests/elsewhere.py OP interpreted          the Triton kernels

runs the cases of tests/OP_suite.py. One line of JSON a case: its name, and what went wrong or nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from kernel_resources import triton_module

ROOT = Path(__file__).parents[1]


class Outcomes:
    """What an op's suite found, run once with these arguments and environment variables."""

    def __init__(self, op: str, *arguments: str, **environment: str) -> None:
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        self.done = subprocess.run(
            [sys.executable, __file__, op, *arguments],
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


def main(op: str, backend: str, library: str = "") -> None:
    suite = importlib.import_module(f"{op}_suite")
    override = torch.library.Library("ganfast", "IMPL")
    if backend == "emulated":
        torch.ops.load_library(library)
    else:
        kernels = triton_module(op)
        for name in suite.OPS:
            override.impl(name, getattr(kernels, name), "CPU")
    for name, check in suite.suite(backend).items():
        try:
            check()
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps({"case": name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
