"""The bar appears on a terminal, for work that lasts, and never touches the items."""

from __future__ import annotations

import io

import pytest

from ganfast.data import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "patience", "shown"), [(Terminal, -1.0, True), (Terminal, 1e9, False), (io.StringIO, -1.0, False)]
)
def test_who_sees_a_bar(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], patience: float, shown: bool) -> None:
    stderr = stream()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "PATIENCE", patience)
    assert list(progress.tracked(iter(range(5)), 5, "decoding images")) == [0, 1, 2, 3, 4]
    assert ("decoding images" in stderr.getvalue()) is shown
