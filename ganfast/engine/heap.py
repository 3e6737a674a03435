"""Memory that tensors on the CPU free stays with the process, where the C library would hand it back page by page.

glibc returns large blocks, and what is free at the end of its heap, to the system at once. A training step frees and asks for
the same blocks again and again, and each of their pages then costs a fault and 4 KB of zeros.
"""

from __future__ import annotations

import ctypes
import os

# parameters of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST, _LARGEST = 2**31 - 1, 32 * 2**20  # what an int holds, and what older glibc takes for the second one

_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Blocks up to 32 MB come from the heap from now on, of which up to 2 GB of what is free stay.

    For the whole process, and for good. Does nothing where one of the environment's variables says what to do, and without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # other C libraries, other systems
        return
    if not any(name in os.environ for name in _CHOSEN):
        mallopt(_TRIM_THRESHOLD, _MOST)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
