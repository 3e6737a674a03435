"""Which backend serves an op: what is asked for, what is missing, and what is said about it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from ganfast.errors import InvalidValue, Unavailable

backends = importlib.import_module("ganfast.backends")  # ganfast.backends is the function

# A stand-in for a C++ that is not there, before ganfast looks for it.
WITHOUT_CPP = """
import torch
def refuse(path):
    raise OSError("no such kernels")
torch.ops.load_library = refuse
"""

# Says which backend was chosen, whether its kernels are registered, and what two calls of an op give.
PROBE = """
import ganfast
import torch
from ganfast.ops import library
from ganfast.ops.spectral_norm import power_iteration, power_iteration_reference, spectral_norm
arguments = [torch.randn(300, 700)], torch.randn(300), torch.randn(700), [0], 2, 1e-12
ganfast.backends()  # looks, and changes nothing
found = power_iteration(*arguments)
spectral_norm(*arguments, None)
same = all(map(torch.equal, found, power_iteration_reference(*arguments)))
kernels = torch._C._dispatch_has_kernel_for_dispatch_key("ganfast::power_iteration", "CPU")
print(library.CPU, "kernels" if kernels else "no kernels", "as the reference" if same else "not as the reference")
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: backends are chosen once, when they are first imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GANFAST_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Backends by why they are missing, to be filled by the test; the environment asks for nothing."""
    reasons: dict[str, str] = {}
    for variable in (*backends.CHOICES, "GANFAST_STRICT"):
        monkeypatch.delenv(variable, raising=False)
    for function in ("_load", "status"):
        monkeypatch.setattr(backends, function, lambda backend: reasons.get(backend, backends.AVAILABLE))
    return reasons


@pytest.mark.parametrize(
    ("variable", "absent", "chosen"),
    [
        ("GANFAST_CPU", (), "cpp"),
        ("GANFAST_CPU", ("cpp",), "reference"),
        ("GANFAST_CUDA", (), "cuda"),
        ("GANFAST_CUDA", ("triton",), "cuda"),
        ("GANFAST_CUDA", ("cuda",), "triton"),
        ("GANFAST_CUDA", ("cuda", "triton"), "reference"),
    ],
)
def test_the_default_is_the_first_that_is_available(
    variable: str, absent: tuple[str, ...], chosen: str, missing: dict[str, str]
) -> None:
    missing.update({backend: f"no {backend} today" for backend in absent})
    first = backends.CHOICES[variable][0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert backends.chosen.__wrapped__(variable) == chosen
    if chosen == first:
        assert not said
    else:
        (warning,) = said
        assert warning.category is RuntimeWarning
        for part in (first, f"no {first} today", chosen):
            assert part in str(warning.message)


@pytest.mark.parametrize("asked", ["auto", None])
def test_strict_raises_where_the_default_would_fall_back(
    asked: str | None, missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GANFAST_STRICT", "1")
    if asked:
        monkeypatch.setenv("GANFAST_CPU", asked)
    assert backends.chosen.__wrapped__("GANFAST_CPU") == "cpp"
    missing["cpp"] = "the compiler is on holiday"
    with pytest.raises(Unavailable, match=r"GANFAST_STRICT=1.*cpp.*the compiler is on holiday"):
        backends.chosen.__wrapped__("GANFAST_CPU")


def test_strict_is_content_with_a_reference_that_was_asked_for(missing: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    missing["cpp"] = "not built"
    monkeypatch.setenv("GANFAST_STRICT", "1")
    monkeypatch.setenv("GANFAST_CPU", "reference")
    assert backends.chosen.__wrapped__("GANFAST_CPU") == "reference"


@pytest.mark.parametrize(("variable", "asked"), [("GANFAST_CPU", "cpp"), ("GANFAST_CUDA", "cuda"), ("GANFAST_CUDA", "triton")])
def test_what_is_asked_for_and_missing_raises(
    variable: str, asked: str, missing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, asked)
    assert backends.chosen.__wrapped__(variable) == asked
    missing[asked] = "not built here"
    with pytest.raises(Unavailable, match=f"{variable}={asked}: not built here"):
        backends.chosen.__wrapped__(variable)


@pytest.mark.parametrize(
    ("variable", "asked", "said"),
    [
        ("GANFAST_CPU", "ccp", "did you mean 'cpp'"),
        ("GANFAST_CPU", "refrence", "did you mean 'reference'"),
        ("GANFAST_CUDA", "tritn", "did you mean 'triton'"),
        ("GANFAST_CPU", "cuda", "expected auto, cpp, reference, got 'cuda'"),
        ("GANFAST_CPU", "", "got ''"),
    ],
)
@pytest.mark.usefixtures("missing")
def test_an_unknown_backend_is_refused_and_the_near_one_named(
    variable: str, asked: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, asked)
    with pytest.raises(InvalidValue, match=variable) as refused:
        backends.chosen.__wrapped__(variable)
    assert said in str(refused.value)


def test_status_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.status("reference") == backends.AVAILABLE
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.status("cuda") == backends.status("triton") == "no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in backends.status("triton")


def test_a_library_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    monkeypatch.setattr(backends, "_failed", {})
    monkeypatch.setattr(backends._build, "why_not_built", lambda name: "")
    assert "_C.so is not built" in backends.status("cpp")
    monkeypatch.setattr(backends._build, "why_not_built", lambda name: f"no compiler for {name}")
    assert backends.status("cpp") == "no compiler for _C"
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert backends.status("cpp") == backends.AVAILABLE  # until it is loaded
    assert backends._load("cpp").startswith("ganfast/_C.so does not load: ")
    assert backends.status("cpp").startswith("ganfast/_C.so does not load: ")


def test_the_cpp_serves_by_default_and_the_reference_where_it_is_asked_for(backend: str) -> None:
    done = python(PROBE, **({"GANFAST_CPU": "reference"} if backend == "reference" else {"GANFAST_STRICT": "1"}))
    # the sums of the C++ round in another order
    expected = {"reference": "reference no kernels as the reference", "cpp": "cpp kernels not as the reference"}
    assert done.stdout.strip() == expected[backend], done.stderr
    assert done.stderr == ""


def test_without_the_cpp_the_reference_serves_and_says_so_once() -> None:
    done = python(WITHOUT_CPP + PROBE)
    assert done.stdout.strip() == "reference no kernels as the reference", done.stderr
    assert done.stderr.count("RuntimeWarning: ganfast: the cpp kernels are not available") == 1
    assert done.stderr.count("Warning") == 1


@pytest.mark.parametrize(("variable", "value"), [("GANFAST_STRICT", "1"), ("GANFAST_CPU", "cpp")])
def test_without_the_cpp_the_import_fails_where_it_is_required(variable: str, value: str) -> None:
    done = python(WITHOUT_CPP + PROBE, **{variable: value})
    assert done.returncode == 1
    assert f"ganfast.errors.Unavailable: {variable}={value}: " in done.stderr
