"""The doctor's findings against what the machine itself says, and against machines that lack things."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from ganfast import _build, backends, doctor
from ganfast.backends import TABLE
from ganfast.data import host


def field(report: str, name: str) -> str:
    found = re.findall(rf"^  {re.escape(name)}  +(.*)$", report, re.MULTILINE)
    assert len(found) == 1, report
    return str(found[0])


def test_every_op_has_a_reference_that_runs_and_every_absence_a_reason() -> None:
    table = backends()
    kernels = {"spectral_norm", "gradient_penalty", "batch_norm"}
    frechet = {"nuclear_norm", "covariance_factor", "covariance_update"}
    assert set(table) == {
        "gather_images",
        "permuted",
        *kernels,
        "adam",
        "convolution",
        "conv_norm",
        "tanh",
        "fuse",
        *frechet,
        "pair_distances",
    }
    assert all(row["reference"] == "available" for row in table.values())
    assert all(reason for row in table.values() for reason in row.values())
    assert (table["permuted"]["cpp"] == "available") is host.AVAILABLE


def test_the_public_name_is_the_function_after_the_doctor_was_there() -> None:
    script = "import ganfast.doctor; ganfast.doctor.report(); print(ganfast.backends()['fuse'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'reference': 'available'}"


def test_a_missing_module_is_a_no_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "AVAILABLE", False)
    monkeypatch.setattr(host, "WHY_NOT", "no module named _host")
    monkeypatch.setattr(_build, "why_not_built", lambda _: "c++: error: out of luck")
    assert backends()["gather_images"]["cpp"] == "c++: error: out of luck"
    monkeypatch.setattr(_build, "why_not_built", lambda _: "")
    assert backends()["gather_images"]["cpp"] == "no module named _host"
    report = doctor.report()
    assert re.search(r"^  gather_images +yes +no +- +no$", report, re.MULTILINE)
    assert re.search(r"^  fuse +yes( +-)+$", report, re.MULTILINE)
    assert field(report, "permuted, cpp") == "no module named _host"


def test_the_record_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "_build_info.json"
    monkeypatch.setattr(_build, "RECORD", record)
    assert _build.why_not_built("_host") == ""
    record.write_text(json.dumps({"_host": {"built": False, "reason": "no C++ compiler"}}))
    assert _build.why_not_built("_host") == "no C++ compiler"
    for torn in ("", "[]", '{"_host": 3}', "{"):
        record.write_text(torn)
        assert _build.why_not_built("_host") == ""


def test_it_reports_this_machine() -> None:
    report = doctor.report()
    assert report.splitlines()[0] == f"ganfast {importlib.metadata.version('ganfast')}"
    assert field(report, "Python").startswith(platform.python_version())
    assert field(report, "torch").startswith(torch.__version__)
    assert f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores usable" in field(report, "CPU")
    assert "t10k-images-idx3-ubyte.gz" in field(report, "embedded")
    assert ("built:" in field(report, "C++ host module")) is host.AVAILABLE
    assert "never ran on a GPU" not in report


def test_cpu_features_are_the_kernels_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    core = "processor\t: {}\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx avx2 amx_bf16\n\n"
    text = core.format(0) + core.format(1)
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    report = doctor._cpu()
    assert report.startswith("Some CPU @ 2 GHz, ")
    assert report.endswith("AVX2 yes, AVX-512 no, AMX-bf16 yes")


def test_cuda_is_said_to_be_missing_for_the_right_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    assert "without CUDA" in field(doctor.report(), "CUDA")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no usable device or driver" in field(doctor.report(), "CUDA")


def test_the_compiler_is_the_one_that_a_build_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "c++"
    fake.write_text("#!/bin/sh\necho 'my c++ 99.1'\necho 'second line'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", f"{fake} -pipe")
    assert field(doctor.report(), "C++ compiler") == "my c++ 99.1"
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert field(doctor.report(), "C++ compiler") == "not found"


def test_compilers_are_found_as_setup_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        build = runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))
    mine = tmp_path / "home" / "bin" / "nvcc"
    mine.parent.mkdir(parents=True)
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    for configured in ("absent-c++ -pthread", "sh -pthread", "", None):
        monkeypatch.setattr(sysconfig, "get_config_var", lambda _, value=configured: value)
        assert doctor._compiler() == build["compiler"]()
    monkeypatch.setenv("CXX", "my-c++ -pipe")
    assert doctor._compiler() == build["compiler"]() == ["my-c++", "-pipe"]
    for name in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
        assert doctor._nvcc() == build["nvcc"]() == str(mine)
        monkeypatch.setenv(name, str(tmp_path / "absent"))


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GANFAST_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 2)
    found = field(doctor.report(), "cache")
    assert found.startswith("none: this user has no home folder") and found.endswith("data sets stay in memory")


def test_a_cache_folder_that_may_not_be_entered(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFAST_CACHE", str(closed / "inner" / "cache"))
    assert str(closed / "inner" / "cache") in field(doctor.report(), "cache")


def test_the_cache_folder_is_judged_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "a" / "b"))
    assert field(doctor.report(), "cache") == f"{tmp_path / 'a' / 'b'} (writable)"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GANFAST_CACHE", str(tmp_path / "file" / "b"))
    assert "not writable" in field(doctor.report(), "cache")


def test_verbose_says_what_never_ran_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "RAN_ON_GPU", {"fuse": "2026-01-02, H200, abc1234"})
    report = doctor.report(verbose=True)
    last = report[report.index("Last run on a GPU") :]
    assert field(last, "fuse") == "2026-01-02, H200, abc1234"
    assert last.count("never ran on a GPU") == len(TABLE) - 1
    assert field(report, "numpy") == importlib.metadata.version("numpy")


def test_columns_line_up() -> None:
    for section in doctor.report(verbose=True).split("\n\n")[1:]:
        title, *rows = section.splitlines()
        assert re.match(r"\S", title)
        names = [re.split(r" {2,}", row)[1] for row in rows]
        start = 2 + max(map(len, names)) + 2
        assert all(row[:2] == "  " and row[start - 2 : start] == "  " and row[start] != " " for row in rows), section
