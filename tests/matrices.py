"""Matrices in float64 of which singular values, ranks or conditions are known."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed))[0]


def with_singular_values(values: Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    k = len(values)
    return rotation(rows, seed)[:, :k] * values @ rotation(columns, seed + 1)[:, :k].T
