"""The Frechet distance: from covariances and from features, and the sums that covariances are made of.

``trace``: from two covariances of full rank, or of half of it. Stock is scipy's sqrtm, what pytorch-fid and clean-fid call, and
the roots of the eigenvalues of S1 S2, which torchmetrics and torch-fidelity take. ``one side kept``: with the factor of the
reference's side, which need not change. ``features``: from as many samples a side; stock forms their covariances.
``accumulate``: one pass over 50,000 features, against X^T X in float64, what it would take at least with a library.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ganfast.benches.harness import Case
from ganfast.metrics import FeatureStatistics, frechet_distance, frechet_distance_from_features
from ganfast.metrics.frechet import Gaussian, distance_between, gaussian

WIDTH = 2048  # of Inception's features
STREAM, BATCH = 50_000, 500


def cases(device: torch.device) -> Iterator[Case]:
    yield from_features(512, WIDTH, device)
    yield accumulate(STREAM, WIDTH, device)
    yield trace(WIDTH, 3 * WIDTH, device)
    yield trace(WIDTH, WIDTH // 2, device, scipy=False)


def trace(width: int, samples: int, device: torch.device, name: str = "", scipy: bool = True) -> Case:
    mean = torch.zeros(width, dtype=torch.float64, device=device)

    @functools.cache
    def sides() -> list[Tensor]:
        return [torch.cov(features(samples, width, seed, device).double().T) for seed in (0, 1)]

    @functools.cache
    def kept() -> Gaussian:
        return gaussian(mean, sides()[0], "1")

    providers: dict[str, Callable[[], float]] = {
        "eigvals of S1 S2": lambda: apart(*sides(), roots_of_eigenvalues(*sides())),
        "ganfast": lambda: frechet_distance(mean, sides()[0], mean, sides()[1]),
        "ganfast, one side kept": lambda: float(distance_between(kept(), gaussian(mean, sides()[1], "2"), "1", "2")),
    }
    if scipy:
        providers["scipy sqrtm"] = lambda: apart(*sides(), sqrtm_trace(*sides()))
    stock = ("eigvals of S1 S2", *["scipy sqrtm"] * scipy)
    name = name or f"trace {width}, rank {min(width, samples - 1)}"
    return Case("frechet", name, providers, stock, dtype=torch.float64, device=device)


def from_features(samples: int, width: int, device: torch.device, name: str = "", scipy: bool = True) -> Case:
    @functools.cache
    def sides() -> list[Tensor]:
        return [features(samples, width, seed, device) for seed in (0, 1)]

    def stock(root: Callable[[Tensor, Tensor], float]) -> float:
        (mean1, one), (mean2, other) = ((f.mean(0), torch.cov(f.T)) for f in map(Tensor.double, sides()))
        return float((mean1 - mean2).square().sum()) + apart(one, other, root(one, other))

    providers: dict[str, Callable[[], float]] = {
        "eigvals of S1 S2": lambda: stock(roots_of_eigenvalues),
        "ganfast": lambda: float(frechet_distance_from_features(*sides())),
    }
    if scipy:
        providers["scipy sqrtm"] = lambda: stock(sqrtm_trace)
    name = name or f"features {samples} x {width} a side"
    return Case(
        "frechet", name, providers, tuple(key for key in providers if key != "ganfast"), dtype=torch.float64, device=device
    )


def accumulate(samples: int, width: int, device: torch.device) -> Case:
    @functools.cache
    def rows() -> Tensor:
        return features(samples, width, 0, device)

    def ours() -> float:
        statistics = FeatureStatistics()
        for batch in rows().split(BATCH):
            statistics.update(batch)
        return float(statistics.covariance.trace())

    def product() -> float:
        total = torch.zeros(width, width, dtype=torch.float64, device=device)
        for block in rows().split(5000):  # large ones: the product at its best
            wide = block.double()
            total.addmm_(wide.T, wide)
        means = rows().mean(dim=0, dtype=torch.float64)
        return float((total.trace() - samples * means.square().sum()) / (samples - 1))

    providers = {"X^T X in float64": product, "ganfast": ours}
    name, flops = f"accumulate {samples} x {width}", samples * width**2  # of one triangle
    return Case("frechet", name, providers, ("X^T X in float64",), flops=flops, dtype=torch.float64, device=device)


def features(samples: int, width: int, seed: int, device: torch.device) -> Tensor:
    """Correlated, with variances over four decades, as a network's are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return (torch.randn(samples, width, generator=generator) @ mixing.T / width**0.5 + 0.4).to(device)


def apart(one: Tensor, other: Tensor, shared: float) -> float:
    return float(one.trace() + other.trace()) - 2 * shared


def roots_of_eigenvalues(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.eigvals(one @ other).sqrt().real.sum())


def sqrtm_trace(one: Tensor, other: Tensor) -> float:
    import scipy.linalg

    return float(np.trace(scipy.linalg.sqrtm((one @ other).cpu().numpy())).real)
