"""Precision, recall, density and coverage of 10,000 features a side, against torch-fidelity's precision and recall alone.

Stock is what its ``calculate_precision_recall_full`` does at this size: three matrices of all distances, k-th values of rows.
``real kept``: with the real side's radii known, as in evaluation during training. Shares of a matrix product are of one in
bfloat16, which is what wide features are bounded in where the processor has it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.metrics.prdc import Manifold, precision_recall_density_coverage

SAMPLES, K = 10_000, 3


def cases(device: torch.device) -> Iterator[Case]:
    for width in (2048, 128):
        yield case(SAMPLES, width, device)


def case(samples: int, width: int, device: torch.device) -> Case:
    @functools.cache
    def sides() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        real, fake = (torch.randn(samples, width, generator=generator).to(device) for _ in range(2))
        return real, fake

    @functools.cache
    def kept() -> Manifold:
        return Manifold.of(sides()[0], K)

    providers = {
        "all distances": lambda: all_distances(*sides()),
        "ganfast": lambda: precision_recall_density_coverage(*sides(), k=K),
        "ganfast, real kept": lambda: precision_recall_density_coverage(kept(), sides()[1], k=K),
    }
    flops = 4 * samples**2 * width  # half of the products within each side, and those between them
    name = f"{samples} x {width} a side"
    return Case("prdc", name, providers, ("all distances",), flops=flops, dtype=torch.bfloat16, device=device)


def all_distances(real: Tensor, fake: Tensor) -> dict[str, float]:
    within_real, within_fake = (torch.cdist(side, side).kthvalue(K + 1).values for side in (real, fake))
    between = torch.cdist(real, fake)
    recall = (between <= within_fake).any(dim=1).float().mean()
    precision = (within_real >= between.T).any(dim=1).float().mean()
    return {"precision": precision.item(), "recall": recall.item()}
