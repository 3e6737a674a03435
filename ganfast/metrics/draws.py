"""The random orders in which the field's tools take samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole

Seed = int | torch.Generator


def permutations(seed: Seed) -> Callable[[int], Tensor]:
    """What gives one permutation of n after the other, int64 (n,).

    A number seeds NumPy's legacy generator: torch-fidelity's draws, and clean-fid's after ``numpy.random.seed``. A torch
    generator gives torchmetrics' ones, which takes ``torch.default_generator``.
    """
    if isinstance(seed, torch.Generator):
        return lambda n: torch.randperm(n, generator=seed, device=seed.device)
    number = whole(seed, "seed", least=0)
    if number >= 2**32:
        raise InvalidValue(f"expected a seed from 0 to 2^32 - 1, got {number}")
    legacy = np.random.RandomState(number)
    return lambda n: torch.from_numpy(legacy.permutation(n))
