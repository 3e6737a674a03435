"""Builds ``ganfast._host`` from ``csrc/host``; everything else about the package stands in pyproject.toml.

The C++ is an accelerator, never a condition: where it cannot be built the install goes on without it, says so once, and writes
the reason to ``ganfast/_build_info.json``, which ``ganfast doctor`` shows. ``GANFAST_REQUIRE_BUILD=1`` makes it an error.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

# No -march=native: a wheel runs on other machines than the one that built it.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


def compiler() -> list[str]:
    """$CXX, otherwise the one that Python was built with if this machine has it, otherwise c++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    configured = shlex.split(sysconfig.get_config_var("CXX") or "")
    return configured if configured and shutil.which(configured[0]) else ["c++"]


def first_error(output: str) -> str:
    """The first line of a build's output that names an error; lines that only echo a command are passed over."""
    lines = [line.strip() for line in output.splitlines() if FLAGS[0] not in line]
    named = (line for line in lines if re.search(r"\berror:|not found|No such file|Permission denied", line))
    return next(named, "the compiler failed and named no error")


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise CCompilerError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise CCompilerError(first_error(done.stdout))


def build_with_ninja(compile_: list[str], link: list[str], objects: dict[str, str], module: str, folder: Path) -> None:
    """On every core, and only what changed: ninja reads the header dependencies that the compiler writes."""

    def path(name: str) -> str:
        return re.sub(r"([$ :])", r"$\1", name)

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    lines = [
        f"builddir = {path(str(folder))}",
        f"rule compile\n  command = {command(compile_)} -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {command(link)} $in -o $out",
        *(f"build {path(built)}: compile {path(source)}" for source, built in objects.items()),
        f"build {path(module)}: link {' '.join(map(path, objects.values()))}",
    ]
    script = folder / "build.ninja"
    script.write_text("\n".join(lines) + "\n")
    run(["ninja", "-f", str(script)])


def build_in_turn(compile_: list[str], link: list[str], objects: dict[str, str], module: str) -> None:
    for source, built in objects.items():
        run([*compile_, "-c", source, "-o", built])
    run([*link, *objects.values(), "-o", module])


class BuildHost(build_ext):
    def run(self) -> None:
        self.reason = ""
        # setuptools builds aside and copies afterwards, with inplace switched off meanwhile
        self.folders = [Path(self.build_lib, "ganfast"), *([Path("ganfast")] if self.inplace else [])]
        super().run()
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            record = {"host": {"built": not self.reason, "reason": self.reason}}
            (folder / "_build_info.json").write_text(json.dumps(record, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        module = Path(self.get_ext_fullpath(ext.name))
        try:
            self.build(ext.sources, module)
        except CCompilerError as error:
            if not ext.optional:
                raise
            self.reason = str(error)
            for folder in self.folders:  # an earlier build's module belongs to other sources
                (folder / module.name).unlink(missing_ok=True)
            print(f"ganfast: the C++ was not built ({self.reason}); pure Python does its work, slower", file=sys.stderr)

    def build(self, sources: list[str], module: Path) -> None:
        try:
            import pybind11
        except ImportError as error:
            raise CCompilerError("pybind11 is not installed") from error
        if not shutil.which(compiler()[0]):
            raise CCompilerError(f"no C++ compiler: {compiler()[0]} not found; install g++ or clang++, or set CXX")
        # not build_temp: an editable install gets a fresh one each time, and would compile everything again
        folder = Path("build", f"host-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
        for needed in (folder, module.parent):
            needed.mkdir(parents=True, exist_ok=True)
        headers = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
        flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        compile_ = [*compiler(), *flags, *(word for header in headers for word in ("-isystem", header))]
        link = [*compiler(), *SHARED]
        objects = {source: str(folder / f"{Path(source).stem}.o") for source in sources}
        if shutil.which("ninja"):
            build_with_ninja(compile_, link, objects, str(module), folder)
        else:
            build_in_turn(compile_, link, objects, str(module))


setup(
    ext_modules=[
        Extension(
            "ganfast._host",
            sorted(str(path) for path in Path("csrc/host").glob("*.cpp")),
            optional=os.environ.get("GANFAST_REQUIRE_BUILD") != "1",
        )
    ],
    cmdclass={"build_ext": BuildHost},
)
