"""Builds the compiled halves of ganfast; everything else about the package stands in pyproject.toml.

    ganfast._host     csrc/host/*.cpp   pybind11, no torch: batch gather, permutations
    ganfast._C        csrc/cpu/*.cpp    CPU kernels, on LibTorch's stable ABI: one binary for every torch from 2.11 on
    ganfast._C_cuda   csrc/cuda/*.cu    CUDA kernels, the same; built where nvcc is found, with or without a GPU

They are accelerators, never a condition: what cannot be built is left out, said once, and its reason is written to
``ganfast/_build_info.json``, which ``ganfast doctor`` shows. ``GANFAST_REQUIRE_BUILD=1`` makes it an error for what has its
compiler. The headers are those of the torch that is installed; a build environment of its own gets no second torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

OLDEST_TORCH = (2, 11)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*OLDEST_TORCH)

# No -march=native: a wheel runs on other machines than the one that built it. No errno: a loop with a square root is no loop of
# vectors where that may have to call the library.
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-Wall", "-Wextra"]
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]

DEFAULT_ARCHITECTURES = "8.0+PTX;9.0a"  # in the syntax of TORCH_CUDA_ARCH_LIST; PTX of 9.0a would run on nothing newer

NOT_BUILT = {
    "_host": "the C++ was not built ({}); pure Python does its work, slower",
    "_C": "the CPU kernels were not built ({}); the reference implementation does their work, slower",
    "_C_cuda": "the CUDA kernels were not built ({})",
}


class NotHere(CCompilerError):
    """What a library needs is not on this machine: never an error, even where a build is required."""


@dataclass(frozen=True)
class Commands:
    """``compile -c SOURCE -o OBJECT`` for each source, and ``link OBJECT ... libraries -o MODULE``."""

    compile: list[str]
    link: list[str]
    libraries: Sequence[str] = ()


# ---- what is on this machine


def compiler() -> list[str]:
    """$CXX, otherwise the one that Python was built with if this machine has it, otherwise c++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    configured = shlex.split(sysconfig.get_config_var("CXX") or "")
    return configured if configured and shutil.which(configured[0]) else ["c++"]


def found_compiler() -> list[str]:
    found = compiler()
    if not shutil.which(found[0]):
        raise CCompilerError(f"no C++ compiler: {found[0]} not found; install g++ or clang++, or set CXX")
    return found


def nvcc() -> str:
    """$CUDA_HOME's, otherwise the one on the PATH, otherwise /usr/local/cuda's."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [*(f"{home}/bin/nvcc" for home in homes if home), "nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if not found:
        raise NotHere("no CUDA compiler: nvcc not found; set CUDA_HOME")
    return found


def torch_folder() -> Path:
    """The installed torch, which is looked at and never imported; a build environment is looked past."""
    spec = importlib.util.find_spec("torch")
    searched = [*(spec.submodule_search_locations or [] if spec else [])]
    searched += [str(Path(sysconfig.get_path(kind), "torch")) for kind in ("platlib", "purelib")]
    folder = next((Path(place) for place in searched if Path(place, "version.py").exists()), None)
    if folder is None:
        raise NotHere("torch is not installed in this environment; install torch first, then ganfast again")
    version = re.search(r"__version__ = '((\d+)\.(\d+)[^']*)'", Path(folder, "version.py").read_text())
    if version is None or (int(version[2]), int(version[3])) < OLDEST_TORCH:
        found = version[1] if version else "of unknown version"
        raise NotHere(f"torch {found} is older than {'.'.join(map(str, OLDEST_TORCH))}")
    return folder


# ---- the three libraries


def host(folder: Path) -> Commands:
    try:
        import pybind11
    except ImportError as error:
        raise CCompilerError("pybind11 is not installed") from error
    headers = [pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    return Commands([*found_compiler(), *cxx_flags(), *isystem(headers)], [*compiler(), *SHARED])


def cpu(folder: Path) -> Commands:
    torch = torch_folder()
    compile_ = [*found_compiler(), *cxx_flags(), STABLE_ABI, *isystem([torch / "include"])]
    return Commands(compile_, [*compiler(), *SHARED], [f"-L{torch / 'lib'}", "-ltorch_cpu"])


def cuda(folder: Path) -> Commands:
    """Compiled with any torch's headers. A torch without CUDA has no libtorch_cuda to link with, so an empty one stands in:
    only its name goes into the library, and the real one is in the process before ours is loaded.
    """
    torch, tool = torch_folder(), nvcc()
    stub = folder / "libtorch_cuda.so"
    run([*found_compiler(), "-shared", "-xc++", os.devnull, "-Wl,-soname,libtorch_cuda.so", "-o", str(stub)])
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", STABLE_ABI, "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads=0"]
    compile_ = [tool, "-ccbin", found_compiler()[0], *flags, *architectures(), *isystem([torch / "include"])]
    libraries = ["-Xlinker", "--no-as-needed", f"-L{folder}", "-ltorch_cuda", f"-L{torch / 'lib'}", "-ltorch_cpu"]
    return Commands(compile_, [tool, "-ccbin", found_compiler()[0], "-shared", "-cudart", "static", *architectures()], libraries)


def architectures() -> list[str]:
    """TORCH_CUDA_ARCH_LIST as nvcc's options: machine code for each, and PTX for those with +PTX."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    options = []
    for name in re.split(r"[; ,]+", asked.strip()):
        number = name.removesuffix("+PTX").replace(".", "")
        if not re.fullmatch(r"\d+[af]?", number):
            raise CCompilerError(f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0 or 9.0a+PTX, got {name!r}")
        kinds = ["sm", "compute"] if name.endswith("+PTX") else ["sm"]
        options += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
    return options


def cxx_flags() -> list[str]:
    return [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]


def isystem(headers: list[str | Path]) -> list[str]:
    return [word for header in headers for word in ("-isystem", str(header))]


LIBRARIES = {
    "_host": (host, "csrc/host/*.cpp"),
    "_C": (cpu, "csrc/cpu/*.cpp"),
    "_C_cuda": (cuda, "csrc/cuda/*.cu"),
}


# ---- building


def first_error(output: str) -> str:
    """The first line of a build's output that names an error; lines that only echo a command are passed over."""
    lines = [line.strip() for line in output.splitlines() if FLAGS[0] not in line]
    named = (line for line in lines if re.search(r"\berror:|not found|No such file|Permission denied|fatal\s*:", line))
    return next(named, "the compiler failed and named no error")


def run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    except OSError as error:
        raise CCompilerError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise CCompilerError(first_error(done.stdout))


def build_with_ninja(commands: Commands, objects: dict[str, str], module: str, folder: Path) -> None:
    """On every core, and only what changed: ninja reads the header dependencies that the compiler writes."""

    def path(name: str) -> str:
        return re.sub(r"([$ :])", r"$\1", name)

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    lines = [
        f"builddir = {path(str(folder))}",
        f"rule compile\n  command = {command(commands.compile)} -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {command(commands.link)} $in {command([*commands.libraries])} -o $out",
        *(f"build {path(built)}: compile {path(source)}" for source, built in objects.items()),
        f"build {path(module)}: link {' '.join(map(path, objects.values()))}",
    ]
    script = folder / "build.ninja"
    script.write_text("\n".join(lines) + "\n")
    run(["ninja", "-f", str(script)])


def build_in_turn(commands: Commands, objects: dict[str, str], module: str) -> None:
    for source, built in objects.items():
        run([*commands.compile, "-c", source, "-o", built])
    run([*commands.link, *objects.values(), *commands.libraries, "-o", module])


class BuildLibraries(build_ext):
    def run(self) -> None:
        self.reasons: dict[str, str] = {}
        # setuptools builds aside and copies afterwards, with inplace switched off meanwhile
        self.folders = [Path(self.build_lib, "ganfast"), *([Path("ganfast")] if self.inplace else [])]
        super().run()
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            record = {name: {"built": not reason, "reason": reason} for name, reason in self.reasons.items()}
            (folder / "_build_info.json").write_text(json.dumps(record, indent=1) + "\n")

    def get_ext_filename(self, fullname: str) -> str:
        """Only the pybind11 module depends on Python's version."""
        *parents, name = fullname.split(".")
        return super().get_ext_filename(fullname) if name == "_host" else str(Path(*parents, f"{name}.so"))

    def build_extension(self, ext: Extension) -> None:
        name, module = ext.name.rpartition(".")[2], Path(self.get_ext_fullpath(ext.name))
        try:
            self.build(name, ext.sources, module)
        except CCompilerError as error:
            if not ext.optional and not isinstance(error, NotHere):
                raise
            self.reasons[name] = str(error)
            for folder in self.folders:  # an earlier build's library belongs to other sources
                (folder / module.name).unlink(missing_ok=True)
            print(f"ganfast: {NOT_BUILT[name].format(error)}", file=sys.stderr)
        else:
            self.reasons[name] = ""

    def build(self, name: str, sources: list[str], module: Path) -> None:
        # not build_temp: an editable install gets a fresh one each time, and would compile everything again
        folder = Path("build", f"{name.strip('_')}-{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
        for needed in (folder, module.parent):
            needed.mkdir(parents=True, exist_ok=True)
        commands = LIBRARIES[name][0](folder)
        objects = {source: str(folder / f"{Path(source).stem}.o") for source in sources}
        if shutil.which("ninja"):
            build_with_ninja(commands, objects, str(module), folder)
        else:
            build_in_turn(commands, objects, str(module))


def extensions() -> list[Extension]:
    required = os.environ.get("GANFAST_REQUIRE_BUILD") == "1"
    sources = {name: sorted(map(str, Path().glob(pattern))) for name, (_, pattern) in LIBRARIES.items()}
    return [Extension(f"ganfast.{name}", found, optional=not required) for name, found in sources.items() if found]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildLibraries})
