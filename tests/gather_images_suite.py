"""The parity tests of the batch gather for a process of its own; tests/elsewhere.py runs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from ganfast.data import portable
from ganfast.ops.gather_images import gather_images

OPS = ("gather_images",)
SHAPES = {"odd": (7, 5, 9, 3), "grey": (9, 28, 28, 1), "one pixel": (3, 1, 1, 4), "several blocks": (4, 33, 31, 3)}


def fresh() -> np.random.Generator:
    seed = torch.Generator().seed()
    print("seed", seed, file=sys.stderr)
    return np.random.default_rng(seed)


def check_bits(shape: tuple[int, ...], channels_last: bool) -> None:
    """The same bits as numpy's: bytes have one right answer."""
    rng = fresh()
    data = rng.integers(0, 256, shape, dtype=np.uint8)
    rows = rng.integers(0, shape[0], 11)
    mirrored = rng.integers(0, 2, 11).astype(bool)
    _, height, width, channels = shape
    expected = np.full((11, height, width, channels) if channels_last else (11, channels, height, width), np.nan, np.float32)
    portable.gather_images(data, rows, mirrored, expected, channels_last)
    found = gather_images(*map(torch.from_numpy, (data, rows, mirrored)), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert found.shape == (11, channels, height, width) and found.is_contiguous(memory_format=layout)
    assert np.array_equal((found.permute(0, 2, 3, 1) if channels_last else found).numpy(), expected)


def check_every_byte() -> None:
    data = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    found = gather_images(data, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool), False)
    assert torch.equal(found.view(256), torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1)))


def check_none() -> None:
    data = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    found = gather_images(data, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool), True)
    assert found.shape == (0, 3, 4, 4) and found.dtype == torch.float32


def suite(backend: str) -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {
        f"{name}, {'channels last' if last else 'contiguous'}": partial(check_bits, shape, last)
        for name, shape in SHAPES.items()
        for last in (True, False)
    }
    return cases | {"every byte": check_every_byte, "no rows": check_none}
