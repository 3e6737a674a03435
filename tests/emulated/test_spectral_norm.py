"""The CUDA kernels of spectral norm and the code that launches them, on the CPU, under ASan and UBSan.

Their source is compiled by g++, the blocks and threads are loops (csrc/common/block.h), the ops take the CPU's place in the
dispatcher, and the parity tests run on them. What this cannot show: alignment, launch faults, and most races. Nothing here has
run on a GPU.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from elsewhere import ROOT, Outcomes
from spectral_norm_suite import suite

pytestmark = pytest.mark.tier(2)

FLAGS = ["-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def build(source: Path, library: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    command = ["g++", *FLAGS, *SANITIZERS, "-isystem", str(torch_folder / "include"), "-shared", "-xc++", str(source)]
    command += ["-o", str(library), f"-L{torch_folder / 'lib'}", "-ltorch_cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def outcomes(preloaded: str, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    library = tmp_path_factory.mktemp("emulated") / "spectral_norm.so"
    build(ROOT / "csrc" / "cuda" / "spectral_norm.cu", library)
    # Python and torch leave memory to the end of the process
    return Outcomes("emulated", str(library), LD_PRELOAD=preloaded, ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.parametrize("case", suite("emulated"))
def test_parity(case: str, outcomes: Outcomes) -> None:
    outcomes.expect(case)
