"""Rules of the house that no type checker sees; the layers of imports are import-linter's, in pyproject.toml."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = sorted((ROOT / "ganfast" / "engine").glob("*.py"))
RECIPES = {path.stem for path in (ROOT / "ganfast" / "recipes").glob("*.py") if not path.stem.startswith("_")}
LOSS_MATHS = {
    "bce",
    "binary_cross_entropy",
    "gradient_penalty",
    "hinge",
    "logsigmoid",
    "minimax",
    "softplus",
    "spectral_norm",
    "wasserstein",
}


def words(source: str) -> set[str]:
    """Identifiers and the words of strings, whole and in parts, lower case; a docstring may cite what code may not name."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.update([*name.split("."), *([other] if other else [])])
            case ast.Constant(value=str(text)) if id(node) not in prose:
                found.update(re.findall(r"[A-Za-z_][\w-]*", text))
    whole = {word.lower().replace("-", "_") for word in found}
    return whole | {part for word in whole for part in word.split("_") if part}


def imports(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
    return found


def test_the_word_finder_sees_names_and_strings_and_no_prose() -> None:
    source = (
        '"""hinge"""\nimport a.dcgan as net\ndef f(wgan):\n    "bce"\n    return x.softplus(kind="wgan-gp: x", hinge_loss=1)\n'
    )
    assert words(source) == {
        "a",
        "dcgan",
        "net",
        "f",
        "wgan",
        "x",
        "softplus",
        "kind",
        "wgan_gp",
        "gp",
        "hinge_loss",
        "hinge",
        "loss",
    }


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_the_engine_names_no_recipe_and_no_loss(path: Path) -> None:
    assert not words(path.read_text()) & (RECIPES | LOSS_MATHS)


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: path.name)
def test_the_engine_knows_the_type_the_data_the_metrics_and_the_optimizer_alone(path: Path) -> None:
    known = "recipe", "data", "metrics", "optim", "errors", "files", "engine", "_version"
    allowed = tuple(f"ganfast.{name}." for name in known)
    mine = {name for name in imports(path.read_text()) if name.partition(".")[0] in ("ganfast", "")}
    assert not {name for name in mine if not f"{name}.".startswith(allowed)}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_import_nothing_of_ganfast(path: Path) -> None:
    found = imports(path.read_text())
    assert not {name for name in found if name.partition(".")[0] == "ganfast" or name.startswith("..")}


def test_csrc_includes_no_torch_in_the_host_module() -> None:
    sources = [path for path in (ROOT / "csrc" / "host").iterdir() if path.suffix in (".cpp", ".h", ".hpp")]
    assert sources
    assert not [path.name for path in sources if re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text())]


def test_recipes_are_found_by_their_files() -> None:
    assert {"gan", "dcgan", "wgan", "wgan_gp", "sngan", "cgan", "infogan", "cyclegan"} <= RECIPES


def test_import_ganfast_is_light() -> None:
    heavy = {"matplotlib", "PIL", "rich", "scipy", "tensorboard", "triton", "torchvision", "pandas"}
    script = "import sys, torch, numpy; before = set(sys.modules); import ganfast; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "ganfast" in loaded
    assert not heavy & {name.partition(".")[0] for name in loaded}


def test_every_package_folder_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ganfast").rglob("__init__.py")}
    assert listed == folders | {"ganfast.kernels", "ganfast.benches", "ganfast.benches.ops", "ganfast.benches.training"}
