"""Without the C++ kernels the tests of what they do are not collected, and so not counted."""

from __future__ import annotations

import os

from ganfast.ops import library

if library.CPU != "cpp" and os.environ.get("GANFAST_REQUIRE_BUILD") != "1":
    collect_ignore = ["test_conv.py", "test_fuse_convolutions.py"]
