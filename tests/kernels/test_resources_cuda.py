"""The CUDA kernels compiled for sm_80 and sm_90a without a GPU, against csrc/resources.csv. That they run is not shown here."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_resources import SOURCES, Row, compile_cuda, excesses, read, run_nvcc, torch_folder

pytestmark = pytest.mark.tier(4)

LOAD = """
import ctypes, os, sys, torch
import ganfast.ops.adam, ganfast.ops.batch_norm, ganfast.ops.gradient_penalty, ganfast.ops.spectral_norm
ctypes.CDLL(sys.argv[1], os.RTLD_LAZY)
batch_norm = "batch_norm_act", "batch_norm_act_tracked", "batch_norm_act_backward", "normalise_act"
for op in ("adam_", "power_iteration", "spectral_norm", "spectral_norm_backward", "interpolate", "slope_penalty", *batch_norm):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ganfast::{op}", "CUDA"), op
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Path]:
    folder = tmp_path_factory.mktemp("cuda")
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    rows = [row for source, made in zip(SOURCES, objects, strict=True) for row in compile_cuda(source, made)]
    library = folder / "_C_cuda.so"
    libraries = [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
    run_nvcc("-shared", "-cudart=static", *map(str, objects), *libraries, "-o", str(library))
    return rows, library


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_no_kernel_needs_more_than_is_recorded(architecture: str, compiled: tuple[list[Row], Path]) -> None:
    recorded = [row for row in read() if row.compiler.startswith("nvcc")]
    assert excesses(compiled[0], recorded, architecture) == []


def test_the_library_needs_nothing_of_torch_but_its_stable_abi(compiled: tuple[list[Row], Path]) -> None:
    listed = subprocess.run(["nm", "-D", "-C", "--undefined-only", str(compiled[1])], capture_output=True, text=True, check=True)
    undefined = [line.split(" U ")[1] for line in listed.stdout.splitlines() if " U " in line]
    assert "aoti_torch_get_current_cuda_stream" in undefined
    assert [name for name in undefined if re.match(r"(at|c10|torch)::", name)] == []


def test_the_library_takes_the_cuda_key_of_every_op(compiled: tuple[list[Row], Path]) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, str(compiled[1])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_ratchet_holds() -> None:
    recorded = [Row("nvcc 13.0", "sm_80", kernel, 40, 0, 2048) for kernel in ("A", "B")]
    a, b = recorded
    assert excesses(recorded, recorded, "sm_80") == []
    assert excesses([replace(a, registers=32), b], recorded, "sm_80") == []
    for worse in ({"registers": 41}, {"shared_bytes": 2049}, {"spilled_bytes": 4}, {"kernel": "C"}):
        assert excesses([replace(a, **worse), b], recorded, "sm_80")
    assert excesses([a], recorded, "sm_80")
    other = [replace(row, compiler="nvcc 12.8", registers=44) for row in recorded]
    assert excesses(other, recorded, "sm_80") == []
    assert excesses([replace(other[0], spilled_bytes=4), b], recorded, "sm_80")
