"""Index permutations and the batch gather on the host: the C++ of ``ganfast._host`` where it was built, numpy otherwise.

``AVAILABLE`` says which, ``WHY_NOT`` why the C++ is not there (empty if it is). Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganfast.data import portable
from ganfast.errors import InvalidValue

AVAILABLE: bool
WHY_NOT: str
_permuted: Callable[..., Any]
_flips: Callable[..., Any]
gather_images: Callable[..., None]

try:
    import ganfast._host as _built

    _permuted, _flips, gather_images = _built.permuted, _built.flips, _built.gather_images
    AVAILABLE, WHY_NOT = True, ""
except (ImportError, AttributeError) as error:
    _permuted, _flips, gather_images = portable.permuted, portable.flips, portable.gather_images
    AVAILABLE, WHY_NOT = False, str(error)

WORD = 2**64 - 1


def permuted(start: int, count: int, n: int, seed: int, stream: int = 0) -> NDArray[np.int64]:
    """Row numbers int64 (count,) of draws ``start`` to ``start + count - 1`` from ``n`` rows.

    Draw i belongs to epoch i // n, and each epoch visits every row once, in an order keyed by (seed, stream, epoch). A pure
    function: no state, any start up to 2^62. ``seed`` and ``stream`` are taken modulo 2^64. See :mod:`ganfast.data.portable`.
    """
    _check(start, count)
    if not 1 <= n <= 2**62:
        raise InvalidValue(f"permuted: n must be from 1 to 2^62, got {n}")
    indices: NDArray[np.int64] = _permuted(start, count, n, seed & WORD, stream & WORD)
    return indices


def flips(start: int, count: int, seed: int, stream: int = 0) -> NDArray[np.bool_]:
    """Fair bits (count,) of draws ``start`` to ``start + count - 1``: a hash of (seed, stream, draw)."""
    _check(start, count)
    bits: NDArray[np.bool_] = _flips(start, count, seed & WORD, stream & WORD)
    return bits


def _check(start: int, count: int) -> None:
    if start < 0 or count < 0 or start + count > 2**62:
        raise InvalidValue(f"draws must lie in 0 .. 2^62, got start={start}, count={count}")
