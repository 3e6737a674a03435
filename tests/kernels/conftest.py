"""A file whose compiler is missing is not collected. GANFAST_REQUIRE_BUILD=1 asks for Triton, which comes from where torch comes
from; nvcc is this machine's or not there, as in setup.py.
"""

from __future__ import annotations

import importlib.util
import os

from kernel_resources import nvcc

collect_ignore = []

if importlib.util.find_spec("triton") is None and os.environ.get("GANFAST_REQUIRE_BUILD") != "1":
    collect_ignore += ["test_interpreted.py", "test_resources_triton.py"]
if nvcc() is None:
    collect_ignore += ["test_resources_cuda.py"]
