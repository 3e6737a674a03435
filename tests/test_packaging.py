"""What an install holds, with a compiler and without one, from wheels that are built here out of a copy of the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_BUILT = "ganfast: the C++ was not built"
TINY = """
#include <Python.h>
#include "answer.h"
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_host", "", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
PyMODINIT_FUNC PyInit__host() {
    PyObject* module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "answer", ANSWER);
    return module;
}
"""


def copy_of_the_checkout(to: Path) -> Path:
    to.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, to)
    for name in ("ganfast", "kernels", "benches", "csrc"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__"))
    for objects in (ROOT / "build").glob("*-*"):  # ninja takes those that are up to date
        shutil.copytree(objects, to / "build" / objects.name)
    return to


def environment(folder: Path, **more: str) -> dict[str, str]:
    """No build may import torch: an isolated build environment has none."""
    (folder / "no_torch").mkdir()
    (folder / "no_torch" / "torch.py").write_text("raise SystemExit('the build imported torch')\n")
    kept = {name: value for name, value in os.environ.items() if name not in ("GANFAST_REQUIRE_BUILD", "CC", "CXX")}
    return {**kept, "PYTHONPATH": str(folder / "no_torch"), **more}


@dataclass(frozen=True)
class Wheel:
    path: Path
    output: str
    site: Path  # the wheel unpacked, as an install would

    @property
    def names(self) -> list[str]:
        return zipfile.ZipFile(self.path).namelist()

    @property
    def metadata(self) -> Message:
        name = next(name for name in self.names if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr((self.site / name).read_text())

    def python(self, script: str) -> str:
        """What a script prints that imports ganfast from this wheel and from nowhere else."""
        script = (
            f"import sys; sys.path.insert(0, {str(self.site)!r})\n"
            "sys.meta_path[:] = [finder for finder in sys.meta_path if '__editable__' not in finder.__module__]\n" + script
        )
        return subprocess.run(
            [sys.executable, "-c", script], cwd=self.site.parent, capture_output=True, text=True, check=True
        ).stdout.strip()


def wheel(folder: Path, **env: str) -> Wheel:
    source = copy_of_the_checkout(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-index", "--no-build-isolation", "--no-deps", "-w", "dist", "."]
    done = subprocess.run(
        command, cwd=source, env=environment(folder, **env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    path = next((source / "dist").glob("*.whl"))
    zipfile.ZipFile(path).extractall(folder / "site")
    return Wheel(path, done.stdout, folder / "site")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return wheel(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    folder = tmp_path_factory.mktemp("unbuilt")
    broken = folder / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'note: about to fail' >&2\necho 'c++: fatal error: no space left in tray' >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    return wheel(folder, CC=str(broken), CXX=str(broken))


@pytest.mark.tier(2)
def test_a_wheel_holds_the_module_the_kernels_and_the_data(built: Wheel) -> None:
    assert [name for name in built.names if re.fullmatch(r"ganfast/_host\..*\.(so|pyd)", name)]
    assert {"ganfast/kernels/__init__.py", "ganfast/py.typed", "ganfast/cli.py", "ganfast/_build_info.json"} <= set(built.names)
    for folder, kinds in (("ganfast/data/embedded", "*"), ("ganfast/metrics/weights", "*"), ("ganfast/engine", "*.html")):
        shipped = {path.name for path in (ROOT / folder).glob(kinds) if path.is_file()}
        assert shipped
        assert shipped <= {Path(name).name for name in built.names if name.startswith(f"{folder}/")}
    tops = {name.partition("/")[0] for name in built.names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ganfast"}
    assert NOT_BUILT not in built.output


@pytest.mark.tier(2)
def test_an_installed_wheel_uses_its_module(built: Wheel) -> None:
    said = built.python(
        "from ganfast.data import host; from ganfast._build import host_status; import ganfast.kernels, ganfast._host as built\n"
        "print(host.AVAILABLE, host_status()[0], ganfast.kernels.__file__, built.__file__, sep='\\n')"
    ).splitlines()
    assert said[:2] == ["True", "True"]
    assert all(Path(path).is_relative_to(built.site) for path in said[2:])


def test_without_a_compiler_the_install_goes_on_and_says_so_once(unbuilt: Wheel) -> None:
    assert unbuilt.output.count(NOT_BUILT) == 1
    assert not [name for name in unbuilt.names if name.endswith((".so", ".pyd"))]
    record = json.loads((unbuilt.site / "ganfast" / "_build_info.json").read_text())
    assert record["_host"] == {"built": False, "reason": "c++: fatal error: no space left in tray"}
    assert not any(library["built"] or not library["reason"] for library in record.values())
    assert f"{NOT_BUILT} (c++: fatal error: no space left in tray)" in unbuilt.output


def test_without_the_module_python_gives_the_same_numbers_and_the_reason(unbuilt: Wheel) -> None:
    said = unbuilt.python(
        "from ganfast.data import host; from ganfast.backends import backends\n"
        "print(host.AVAILABLE, sorted(host.permuted(5, 5, 5, seed=3)), backends()['permuted'], sep='\\n')"
    ).splitlines()
    assert said[0] == "False"
    assert re.findall(r"\d+", said[1].replace("int64", "")) == ["0", "1", "2", "3", "4"]
    assert said[2] == str({"reference": "available", "cpp": "c++: fatal error: no space left in tray"})


def test_the_metadata_says_what_an_install_needs(unbuilt: Wheel) -> None:
    from ganfast._version import __version__

    metadata = unbuilt.metadata
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("ganfast", __version__, ">=3.11")
    needed = {re.split(r"[^\w-]", line)[0] for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert needed == {"torch", "numpy", "safetensors", "pillow", "rich", "click", "matplotlib"}
    assert set(metadata.get_all("Provides-Extra")) == {"tensorboard", "triton", "efficientnet", "metrics", "dev"}
    scripts = next(unbuilt.site.glob("*.dist-info/entry_points.txt")).read_text()
    assert "ganfast = ganfast.cli:main" in scripts


def test_a_source_distribution_holds_all_that_a_build_reads(tmp_path: Path) -> None:
    source = copy_of_the_checkout(tmp_path / "source")
    command = [sys.executable, "setup.py", "--quiet", "sdist"]
    subprocess.run(command, cwd=source, env=environment(tmp_path), capture_output=True, check=True)
    with tarfile.open(next((source / "dist").glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    read = {
        path for folder in ("csrc", "kernels", "benches", "ganfast") for path in (source / folder).rglob("*") if path.is_file()
    }
    wanted = {str(path.relative_to(source)) for path in read} | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    assert not wanted - held


def tiny_checkout(folder: Path) -> Path:
    """The real setup.py over a C++ module that compiles in a moment."""
    for name in ("ganfast", "csrc/host"):
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", folder)
    (folder / "csrc/host/module.cpp").write_text(TINY)
    (folder / "csrc/host/answer.h").write_text("#define ANSWER 41\n")
    return folder


def build_in_place(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    shutil.rmtree(folder / "no_torch", ignore_errors=True)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def answer(folder: Path) -> str:
    module = next((folder / "ganfast").glob("_host.*"))
    script = (
        "from importlib.util import module_from_spec as make, spec_from_file_location as find\n"
        f"spec = find('_host', {str(module)!r}); module = make(spec); spec.loader.exec_module(module); print(module.answer)"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.tier(2)
def test_an_edited_header_is_built_again_and_a_failed_build_leaves_no_older_module(tmp_path: Path) -> None:
    folder = tiny_checkout(tmp_path / "a folder")
    assert build_in_place(folder).returncode == 0
    assert answer(folder) == "41"
    (folder / "csrc/host/answer.h").write_text("#define ANSWER 42\n")
    assert build_in_place(folder).returncode == 0
    assert answer(folder) == "42"

    (folder / "csrc/host/answer.h").write_text("#define ANSWER forty_three\n")
    done = build_in_place(folder)
    assert (done.returncode, done.stdout.count(NOT_BUILT)) == (0, 1)
    assert not list((folder / "ganfast").glob("_host.*"))
    record = json.loads((folder / "ganfast" / "_build_info.json").read_text())["_host"]
    assert not record["built"]
    assert re.search(r"error: .*forty_three", record["reason"])


@pytest.mark.tier(2)
def test_it_builds_without_ninja(tmp_path: Path) -> None:
    folder = tiny_checkout(tmp_path / "checkout")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("c++", "g++", "as", "ld", "sh"):
        if found := shutil.which(name):
            (tools / name).symlink_to(Path(found).resolve())
    assert build_in_place(folder, PATH=str(tools), CXX="c++").returncode == 0
    assert not list((folder / "build").rglob("*.ninja"))
    assert answer(folder) == "41"


def test_a_build_can_be_required(tmp_path: Path) -> None:
    folder = tiny_checkout(tmp_path / "checkout")
    done = build_in_place(folder, CXX="no-such-compiler", GANFAST_REQUIRE_BUILD="1")
    assert done.returncode != 0
    assert "no C++ compiler: no-such-compiler not found; install g++ or clang++, or set CXX" in done.stdout
    assert not list((folder / "ganfast").iterdir())


def test_a_build_environment_takes_no_torch() -> None:
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {re.split(r"[^\w-]", line)[0] for line in requires} == {"setuptools", "pybind11", "ninja"}


def test_constraints_pin_all_that_make_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^\w-]", line)[0] for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    assert wanted <= set(pins)
    assert pins["torch"] == "2.13.0"
