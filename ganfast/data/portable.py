"""The host kernels in numpy: what runs where ``ganfast._host`` was not built, equal to it bit for bit.

Randomness is counter-based. With ``mix`` the SplitMix64 step (Steele, Lea and Flood 2014)

    key(seed, stream, counter) = mix(mix(mix(seed) ^ stream) ^ counter)

draw number i of a set of n rows belongs to epoch i // n, whose permutation is an alternating Feistel network under
key(seed, stream, epoch) on the smallest b bits with 2^b >= n: the upper b // 2 bits and the remaining lower bits take turns to be
XORed with a hash of each other under the round's key mix(key + r * GOLDEN). Values of n or more are sent through again (cycle
walking, Black and Rogaway 2002), so what remains is a bijection of 0 .. n - 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ROUNDS = 24


def _mix(x: Words) -> Words:
    x = x + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, stream: int, counter: Words) -> Words:
    # One-element arrays, because numpy warns when a scalar wraps and an array does not.
    first = _mix(np.array([seed], np.uint64))
    return _mix(_mix(first ^ np.uint64(stream)) ^ counter)


def _feistel(x: Words, key: Words, bits: int) -> Words:
    shift = np.uint64(bits - bits // 2)
    low_mask = np.uint64((1 << int(shift)) - 1)
    high_mask = np.uint64((1 << (bits // 2)) - 1)
    high, low = x >> shift, x & low_mask
    for r in range(ROUNDS):
        round_key = _mix(key + np.array([r], np.uint64) * GOLDEN)
        if r % 2 == 0:
            low = low ^ (_mix(high ^ round_key) & low_mask)
        else:
            high = high ^ (_mix(low ^ round_key) & high_mask)
    return (high << shift) | low


def permuted(start: int, count: int, n: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Rows (count,) int64 of draws start .. start + count - 1."""
    draws = np.uint64(start) + np.arange(count, dtype=np.uint64)
    key = _key(seed, stream, draws // np.uint64(n))
    x, bits = draws % np.uint64(n), (n - 1).bit_length()
    walking = np.arange(count)
    while len(walking):
        x[walking] = _feistel(x[walking], key[walking], bits)
        walking = walking[x[walking] >= np.uint64(n)]
    return x.astype(np.int64)


def flips(start: int, count: int, seed: int, stream: int) -> NDArray[np.bool_]:
    """One fair bit (count,) per draw; the complemented seed keeps them apart from the permutations' keys."""
    draws = np.uint64(start) + np.arange(count, dtype=np.uint64)
    return (_key(seed ^ (2**64 - 1), stream, draws) >> np.uint64(63)).astype(np.bool_)


def gather_images(
    images: NDArray[np.uint8], indices: NDArray[np.int64], flipped: NDArray[np.bool_], out: NDArray[Any], channels_last: bool
) -> None:
    """``out[k] = images[indices[k]] / 127.5 - 1``, mirrored where ``flipped[k]``; ``out`` (k, H, W, C) or (k, C, H, W)."""
    if len(indices) and (indices.min() < 0 or indices.max() >= len(images)):
        raise IndexError(f"gather_images: an index is outside 0 .. {len(images) - 1}")
    rows = images[indices]
    rows[flipped] = rows[flipped, :, ::-1]
    out[...] = rows if channels_last else rows.transpose(0, 3, 1, 2)
    out /= np.float32(127.5)
    out -= np.float32(1)
