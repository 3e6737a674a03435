"""What all tests share: a cache folder of their own, and the count of what each tier of the suite proved."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny: threads only wait for each other, for seconds on a busy machine
os.environ["OMP_NUM_THREADS"] = "1"  # the same in the commands that tests start
os.environ["GANFAST_POOL_MB"] = "0"  # results in fresh memory, which tests poison; the pool has tests of its own

TIERS = {1: "reference", 2: "C++ and emulated CUDA", 3: "Triton interpreted", 4: "compile-only", 5: "real GPU"}


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache is neither read nor written by a test, nor by a command that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder with another in it that this process may not enter; root, who may enter everything, gives that up meanwhile."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread; see capset(2)
    had = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, had) == 0
    without = (ctypes.c_uint32 * 6)(*had)
    without[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    folder = tmp_path / "closed"
    (folder / "inner").mkdir(parents=True)
    folder.chmod(0o600)
    assert libc.capset(header, without) == 0
    yield folder
    assert libc.capset(header, had) == 0
    folder.chmod(0o700)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``ganfast ARGUMENTS`` in this process: exit status, stdout, stderr."""
    from ganfast import cli  # not above: tiers choose their backends before anything of it is imported

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, output.out, output.err

    return run


@pytest.fixture
def refused(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Callable[..., str]:
    """The one line with which a command is refused, after checking that it left everything as it was."""

    def run(*arguments: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = command(*arguments)
        assert (code, out) == (2, "") and err.startswith("ganfast: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before
        return err.removeprefix("ganfast: ").rstrip("\n")

    return run


@pytest.fixture
def generator() -> torch.Generator:
    """Other numbers in every run; the seed is shown where a test fails."""
    fresh = torch.Generator()
    print("seed", fresh.seed())
    return fresh


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("tier")
        tier = mark.args[0] if mark else 1
        if tier not in TIERS:
            raise pytest.UsageError(f"{item.nodeid}: tier must be one of {', '.join(map(str, TIERS))}, got {tier!r}")
        item.user_properties.append(("tier", tier))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[int, Counter[str]] = {tier: Counter() for tier in TIERS}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.stats.get(outcome, []):
            tier = dict(getattr(report, "user_properties", ())).get("tier")
            if tier is not None:
                counts[tier][outcome] += 1
    told = (
        f"{tier} {name}: {', '.join(f'{n} {outcome}' for outcome, n in counts[tier].items()) or 'none ran'}"
        for tier, name in TIERS.items()
    )
    terminalreporter.write_line("tiers: " + "; ".join(told))
