"""The Frechet distance over the width of the features and over the number of samples, against the eigenvalues of S1 S2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from ganfast.benches.harness import Case
from ganfast.benches.ops.frechet import from_features, trace

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
SAMPLES = (100, 300, 1000, 3000, 10_000, 50_000)
FEATURES = 1024  # where samples vary


def cases(device: torch.device) -> Iterator[Case]:
    """Widths of covariances of full rank; numbers of samples a side, fewer and more than there are features."""
    for width in WIDTHS:
        yield renamed(trace(width, 3 * width, device, f"width={width}", scipy=False))
    for samples in SAMPLES:
        yield renamed(from_features(samples, FEATURES, device, f"samples={samples}", scipy=False))


def renamed(case: Case) -> Case:
    return dataclasses.replace(case, bench="frechet_curves")
