"""SHA-256 of arrays, files and folders of files, by blocks in threads so that gigabytes take seconds.

The digest of a buffer is the SHA-256 of the concatenated SHA-256 digests of its 16 MiB blocks (one empty block if it is empty).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 16 << 20
WORKERS = min(8, os.cpu_count() or 1)


def of_array(array: NDArray[Any]) -> str:
    """Hex digest of the bytes of a C-contiguous array."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    starts = range(0, max(flat.size, 1), BLOCK)

    def block(start: int) -> bytes:
        return hashlib.sha256(flat[start : start + BLOCK].data).digest()

    if len(starts) == 1:
        return hashlib.sha256(block(0)).hexdigest()
    with ThreadPoolExecutor(WORKERS) as pool:
        return hashlib.sha256(b"".join(pool.map(block, starts))).hexdigest()


def of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    if path.stat().st_size == 0:
        return of_array(np.empty(0, np.uint8))
    return of_array(np.memmap(path, np.uint8, mode="r"))


def of_parts(parts: Iterable[tuple[str, str]]) -> str:
    """Hex digest of named digests; sensitive to names, order and contents."""
    text = "".join(f"{len(name)}:{name}={digest};" for name, digest in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def of_tree(root: Path, names: list[str]) -> str:
    """Hex digest of the files ``names`` under ``root``: their relative names and their bytes, or that they cannot be read."""

    def one(name: str) -> str:
        try:
            with open(root / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:  # a dangling link, say: decoding counts it among the images that cannot be read
            return "unreadable"

    with ThreadPoolExecutor(WORKERS) as pool:
        return of_parts(zip(names, pool.map(one, names), strict=True))
