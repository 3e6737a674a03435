"""The most memory that one iteration holds beyond networks, moments and averages, in a process of its own.

On a CPU as PyTorch's allocator counts it, which sees ganfast's memory only where ganfast keeps no pool.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import torch

from ganfast.benches.training.stock import Mode
from ganfast.benches.training.work import Work


def peak(work: Work, provider: Mode | torch.dtype, device: torch.device) -> int:
    """Bytes, of stock in a mode or of ganfast in a precision."""
    context = multiprocessing.get_context("spawn")
    with _without_pool(), ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(_peak, work, provider, device, torch.get_num_threads()).result()


def _peak(work: Work, provider: Mode | torch.dtype, device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    step = work.stock(provider, device).step if isinstance(provider, Mode) else work.ours(provider, device).step
    for _ in range(2):  # makes moments and compiled code, and chooses convolutions
        step()
    if device.type == "cpu":
        from ganfast.benches import memory  # not above: it is for processes that time nothing

        return memory.peak(step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


@contextmanager
def _without_pool() -> Iterator[None]:
    """What is started inside keeps no pool; this process has its own, and reads the variable no more."""
    name = "GANFAST_POOL_MB"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
