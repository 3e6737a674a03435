"""The input path alone: the next batch, drawn without repetition, half of it mirrored, in float32 between -1 and 1.

Stock is what a careful loop does with all images in one uint8 tensor on the device: ``index_select``, ``where`` and ``flip``, two
operations in place. ganfast's is the engine's sampler, its order by counters included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.data import Dataset, Sampler
from ganfast.data.host import flips, permuted

IMAGES, BATCH = 4096, 64


def cases(device: torch.device) -> Iterator[Case]:
    for size in (32, 64, 128):
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8)
        for channels_last in (True, False):
            yield Case(
                "gather_images",
                f"{BATCH} x {size} x {size} x 3 {'channels-last' if channels_last else 'contiguous'}",
                {"torch": loop(pixels, device, channels_last), "ganfast": sampler(pixels, device, channels_last)},
                stock=("torch",),
                bytes=5 * BATCH * size * size * 3,
                device=device,
            )


def loop(pixels: NDArray[np.uint8], device: torch.device, channels_last: bool) -> Callable[[], dict[int, Tensor]]:
    """Reads an epoch again and again, in the order of the sampler's first one: shuffling would cost little beside the copies."""
    data = torch.from_numpy(pixels).to(device)
    data = data if channels_last else data.permute(0, 3, 1, 2).contiguous()
    order, mirrors = (torch.from_numpy(drawn).to(device) for drawn in (permuted(0, IMAGES, IMAGES, 0), flips(0, IMAGES, 0)))
    batches = itertools.cycle(zip(order.split(BATCH), mirrors.view(-1, 1, 1, 1).split(BATCH), strict=True))

    def batch() -> dict[int, Tensor]:
        rows, mirrored = next(batches)
        chosen = data.index_select(0, rows)
        chosen = torch.where(mirrored, chosen.flip(2 if channels_last else 3), chosen)
        real = chosen.float().div_(127.5).sub_(1)
        return {0: real.permute(0, 3, 1, 2) if channels_last else real}

    return batch


def sampler(pixels: NDArray[np.uint8], device: torch.device, channels_last: bool) -> Callable[[], dict[int, Tensor]]:
    made = Sampler(Dataset("noise", {"real": {"real": pixels}}), seed=0, device=device, flip=True, channels_last=channels_last)
    starts = itertools.count(step=BATCH)
    return lambda: {0: made.batch(next(starts), BATCH, ("real",))["real"]}
