"""Without the C++ kernels the tests of what they do are not collected, and so not counted."""

from __future__ import annotations

import os

import pytest

from ganfast.ops import library

WANTED = library.CPU == "cpp" or os.environ.get("GANFAST_REQUIRE_BUILD") == "1"

if not WANTED:
    collect_ignore = ["test_conv.py", "test_fuse_convolutions.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not WANTED:
        items[:] = [item for item in items if item.get_closest_marker("compiled") is None]
