"""Registers, spilled bytes and shared memory of every kernel, as its compiler states them: what csrc/resources.csv records.

    python tests/kernel_resources.py        compiles everything and writes the file anew

It is a ratchet: the tests of tests/kernels fail where a kernel needs more than is recorded, spills, or is not recorded, so
that whoever makes a kernel larger does it knowingly.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.metadata
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "csrc" / "resources.csv"
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TRITON_SOURCES = sorted((ROOT / "kernels").glob("[!_]*.py"))
ARCHITECTURES = {"sm_80": 80, "sm_90a": 90}  # nvcc's names and Triton's


@dataclass(frozen=True, order=True)
class Row:
    compiler: str
    architecture: str
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def excesses(measured: list[Row], recorded: list[Row], architecture: str) -> list[str]:
    """What is worse than recorded, one line each. Under another version of the compiler, only whether a kernel spills."""
    before = {row.kernel: row for row in recorded if row.architecture == architecture}
    now = {row.kernel: row for row in measured if row.architecture == architecture}
    lines = [f"{kernel}: no longer there" for kernel in before.keys() - now.keys()]
    for kernel, row in now.items():
        old = before.get(kernel)
        if row.spilled_bytes:
            lines.append(f"{kernel}: spills {row.spilled_bytes} bytes")
        if old is None:
            lines.append(f"{kernel}: not recorded; run python tests/kernel_resources.py")
        elif row.compiler == old.compiler:
            if row.registers > old.registers:
                lines.append(f"{kernel}: {row.registers} registers, recorded {old.registers}")
            if row.shared_bytes > old.shared_bytes:
                lines.append(f"{kernel}: {row.shared_bytes} bytes of shared memory, recorded {old.shared_bytes}")
    return sorted(lines)


def read() -> list[Row]:
    with RECORD.open(newline="") as file:
        _, *rows = csv.reader(file)
    return [Row(*row[:3], *map(int, row[3:])) for row in rows]


def write(rows: list[Row]) -> None:
    with RECORD.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Row))
        table.writerows(astuple(row) for row in sorted(rows))


# ---- nvcc


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    candidates = [*([f"{home}/bin/nvcc"] if home else []), "nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((found for found in map(shutil.which, candidates) if found), None)


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def run_nvcc(*arguments: str) -> str:
    tool = nvcc()
    assert tool is not None, "nvcc was not found; set CUDA_HOME"
    done = subprocess.run([tool, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def compile_cuda(source: Path, made: Path) -> list[Row]:
    """An object file with the machine code of both architectures, and what ptxas says about its kernels."""
    codes = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in ARCHITECTURES]
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000", "-Werror=all-warnings"]
    flags += ["-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden", "-isystem", f"{torch_folder()}/include"]
    log = run_nvcc(*flags, *codes, "-c", str(source), "-o", str(made))
    release = re.search(r"release ([\d.]+)", run_nvcc("--version"))
    assert release is not None
    return [ptxas_says(f"nvcc {release[1]}", said) for said in log.split("Compiling entry function")[1:]]


def ptxas_says(compiler: str, said: str) -> Row:
    name = re.search(r"'(\S+)' for '(\w+)'", said)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers, shared = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes smem", said)
    assert name and spilled and registers, said
    return Row(
        compiler,
        name[2],
        readable(name[1]),
        int(registers[1]),
        int(spilled[1]) + int(spilled[2]),
        int(shared[1]) if shared else 0,
    )


def readable(symbol: str) -> str:
    """``Product<float>`` of ``void ganfast::kernel<ganfast::Product<float> >(ganfast::Product<float>::Arguments)``."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    kernel = re.search(r"kernel<(.*?) ?>\(", name)
    return re.sub(r"ganfast::|c10::", "", kernel[1] if kernel else name)


# ---- Triton


def triton_module(stem: str) -> ModuleType:
    """kernels/<stem>.py as it stands in the tree, whether or not the package is installed."""
    if "kernels_in_tree" not in sys.modules:
        folder = ROOT / "kernels"
        spec = importlib.util.spec_from_file_location(
            "kernels_in_tree", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"kernels_in_tree.{stem}")


def triton_kernels() -> list[Any]:
    from triton import JITFunction

    modules = [triton_module(path.stem) for path in TRITON_SOURCES]
    found = [(module, name, kernel) for module in modules for name, kernel in vars(module).items()]
    return [
        kernel
        for module, name, kernel in found
        if isinstance(kernel, JITFunction) and name[0] != "_" and kernel.__module__ == module.__name__
    ]


class Way(NamedTuple):
    """A way in which the ops launch a kernel: a name, types of the arguments, constants, and which are multiples of 16."""

    name: str
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str] = frozenset()
    options: Mapping[str, int] = {}

    def attributes(self, kernel: Any) -> dict[tuple[int], list[list[Any]]]:
        return {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in self.aligned}


def ways(kernel: Any) -> Iterator[Way]:
    """All of them, or those that need the most."""
    if kernel.__name__ in ("spread_product", "pair_product"):
        yield from products(kernel)
    elif kernel.__name__ == "merged_moments":
        constants = {"PHASES": 2, "BLOCK_M": 128}
        types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
        types |= dict.fromkeys(constants, "constexpr") | {"sums_ptr": "*fp64"}
        yield Way("merged_moments<fp32>", types, constants)
    elif kernel.__name__ == "gather_images_kernel":
        types = {"data_ptr": "*u8", "rows_ptr": "*i64", "mirrored_ptr": "*u8", "y_ptr": "*fp32", "total": "i64"}
        types |= dict.fromkeys(("HEIGHT", "WIDTH", "CHANNELS"), "i32")
        for last in (True, False):
            constants = {"CHANNELS_LAST": last, "BLOCK": 1024}
            yield Way(
                f"gather_images<{'channels last' if last else 'contiguous'}>",
                types | dict.fromkeys(constants, "constexpr"),
                constants,
            )
    else:
        yield from specialisations(kernel)


def products(kernel: Any) -> Iterator[Way]:
    """Convolutions of 4 x 4 with stride 2, whose tiles are as large as they get, with what may stand before and behind them."""
    import torch

    module, spread = sys.modules[kernel.__module__], kernel.__name__ == "spread_product"
    norm = {"mean_ptr", "var_ptr", "weight_ptr", "bias_ptr"}
    missing = {"plain": {*norm, "before_ptr", "sums_ptr"}, "norm": {"before_ptr"}, "gradient": {"shift_ptr"}}
    half, single, many = torch.bfloat16, torch.float32, 2**14
    wide = (many, 256, 512) if spread else (512, 256, many)
    few = {"few out": (many, 3, 512), "few in": (many, 64, 3)} if spread else {"few": (64, 3, many)}
    found = [("norm", half, "tf32", wide, True), ("norm", half, "tf32", wide, False), ("norm", single, "tf32", wide, True)]
    found += [("norm", single, "ieee", wide, True)]
    if spread:
        found += [("plain", half, "tf32", wide, True), ("gradient", half, "tf32", wide, False)]
        found += [("gradient", single, "tf32", wide, True), ("norm", half, "tf32", (many, 250, 500), False)]
    found += [("norm", half, "tf32", sizes, spread) for sizes in few.values()]
    for what, dtype, precision, sizes, transposed in found:
        aligned = sizes == wide
        tile = module.tile_of(*sizes, 100, dtype, precision, aligned)
        options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
        form = module.Spread((4, 4), 2, 1, transposed).form
        constants = dict.fromkeys(missing[what] & set(kernel.arg_names)) | form | tile
        factor = str(module.FACTORS[dtype])
        maps = ("x_ptr", "filter_ptr", "y_ptr", "before_ptr", "small_ptr", "big_ptr", "out_ptr")
        types = {name: f"*{factor}" if name in maps else "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
        types |= {"eps_bits": "i64", "slope_bits": "i64", "sums_ptr": "*fp32" if what == "gradient" else "*fp64"}
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
        multiples = {name for name, type in signature.items() if type[0] == "*" or (aligned and name.endswith("channels"))}
        said = [factor, *["ieee"] * (precision == "ieee"), what, *["transposed"] * transposed]
        said += [name for name, its in few.items() if its == sizes] or ["odd"] * (not aligned)
        yield Way(f"{kernel.__name__}<{', '.join(said)}>", signature, constants, frozenset(multiples), options)


def specialisations(kernel: Any) -> Iterator[Way]:
    import triton.language as tl

    wide_of = {tl.float32: tl.float32, tl.float64: tl.float64, tl.bfloat16: tl.float32, tl.float16: tl.float32}
    pairs = [(s, o) for s in wide_of for o in wide_of if wide_of[s] == wide_of[o]]
    seen: list[tuple[dict[str, str], dict[str, Any]]] = []
    for dtype, other in pairs:
        wide = wide_of[dtype]
        promoted = dtype if dtype == other else wide
        chosen = {"DTYPE": dtype, "OTHER": other, "WIDE": wide, "OF_U": True, "FACTOR": 2, "BEFORE": 1, "AFTER": 3}
        chosen |= {"STACKED": True, "ONE_SIDED": True, "LARGEST": 3e38}
        chosen |= {"TANH": True, "HEIGHT": 8 if wide == tl.float64 else 16, "WIDTH": 128}
        # both ways through memory are compiled, one of them for a single type; Triton makes constants of ones
        chosen |= {"SINGLE": True, "rows": 1} if dtype == tl.float16 else {"SINGLE": False, "run": 1}
        types = {"table_ptr": "*i64", "sigmas_ptr": f"*{wide}", "eps": "fp32"}
        types |= {name: "*fp64" for name in ("parts_ptr", "inner_products_ptr", "costs_ptr")}
        types |= {"real_ptr": f"*{dtype}", "fake_ptr": f"*{other}", "alpha_ptr": f"*{wide}", "out_ptr": f"*{promoted}"}
        types |= {"g_ptr": f"*{dtype}", "v_ptr": f"*{dtype}", "penalty_ptr": f"*{wide}"}
        types |= {"length": "i32", "count": "i32", "target": "i64", "scale": "i64"}
        types |= {f"{name}_ptr": f"*{dtype}" for name in ("x", "y", "dy", "dx")}
        types |= {f"{name}_ptr": f"*{wide}" for name in ("sums", "mean", "var", "weight", "bias")}
        types |= {f"{name}_ptr": f"*{wide}" for name in ("levels", "tilts", "dweight", "dbias")}
        types |= dict.fromkeys(("groups", "rows", "channels", "run", "layers", "values"), "i32")
        types |= {f"running_{name}_ptr": f"*{wide}" for name in ("mean", "var")} | {"counted_ptr": "*i64"}
        types |= {"eps_bits": "i64", "slope_bits": "i64", "momentum_bits": "i64"}
        values = {name: chosen[name] for name in kernel.arg_names if name in chosen}
        signature = {name: "constexpr" if name in chosen else types[name] for name in kernel.arg_names}
        if (signature, values) in seen:
            continue
        seen.append((signature, values))
        named = [
            types[name][1:]
            for name in ("real_ptr", "fake_ptr", "g_ptr", "penalty_ptr", "x_ptr", "dweight_ptr")
            if name in signature
        ]
        named += [str(values[name]) for name in ("DTYPE", "OTHER", "WIDE") if name in values]
        yield Way(f"{kernel.__name__}<{', '.join(named)}>", signature, values)


def compile_triton() -> list[Row]:
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter compiles nothing"
    compiler, rows = f"triton {importlib.metadata.version('triton')}", []
    for kernel in triton_kernels():
        for way in ways(kernel):
            source = ASTSource(kernel, way.signature, way.constants, way.attributes(kernel))
            for architecture, number in ARCHITECTURES.items():
                with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(io.StringIO()) as said:
                    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
                    made = triton.compile(source, target=GPUTarget("cuda", number, 32), options=dict(way.options))
                row = ptxas_says(compiler, said.getvalue())
                rows.append(replace(row, architecture=architecture, kernel=way.name, shared_bytes=made.metadata.shared))
    return rows


def measure() -> list[Row]:
    rows = compile_triton()
    with tempfile.TemporaryDirectory() as folder:
        for source in SOURCES:
            rows += compile_cuda(source, Path(folder, f"{source.stem}.o"))
    return rows


if __name__ == "__main__":
    write(measure())
