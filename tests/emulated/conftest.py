"""CUDA kernels and the code that launches them, on the CPU, under ASan and UBSan.

Their source is compiled by g++, the blocks and threads are loops (csrc/common/block.h), the ops take the CPU's place in the
dispatcher, and the parity tests run on them. What this cannot show: launch faults, most races, and the alignment of what nvcc
makes of an access. Nothing here has run on a GPU.

Needs g++ and its sanitizers; without them the tests are not collected, unless GANFAST_REQUIRE_BUILD=1 asks for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from elsewhere import ROOT, Outcomes

FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


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


def build(source: Path, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    command = ["g++", *FLAGS, STABLE_ABI, *SANITIZERS, "-isystem", str(torch_folder / "include"), "-shared", "-xc++", str(source)]
    command += ["-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Of the op that the test file is named after."""
    assert None not in LIBRARIES, "g++, its libasan.so or its libstdc++.so is missing"
    op = request.path.stem.removeprefix("test_")
    library = tmp_path_factory.mktemp("emulated") / f"{op}.so"
    build(ROOT / "csrc" / "cuda" / f"{op}.cu", library)
    # Python and torch leave memory to the end of the process
    return Outcomes(op, "emulated", str(library), LD_PRELOAD=" ".join(map(str, LIBRARIES)), ASAN_OPTIONS="detect_leaks=0")
