"""Tests that need a CUDA device. Without one they are not collected at all, so that none of them is counted as anything."""

from __future__ import annotations

import torch

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
