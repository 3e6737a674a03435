r"""Log-likelihood of test data under a Gaussian window on every sample (Parzen 1962), as Goodfellow et al. 2014, section 5, did.

    log p(t) = log 1/N sum_i exp(-|t - s_i|^2 / 2 sigma^2) - D/2 log(2 pi sigma^2)

A historical figure: in high dimensions it is far from the truth with any affordable number of samples, and ranks generators
otherwise than their samples look (Theis et al. 2016, section 3). It is here to compare with the papers that report it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics.arrays import Array, tensor
from ganfast.metrics.rows import blocks, is_pictures, pixels, rows, same_width, squared_distances

SIGMAS = tuple(float(sigma) for sigma in np.logspace(-1, 0, 10))


class Parzen(NamedTuple):
    """Mean log-likelihood of the test data in nats, its standard error over them, and the windows' width."""

    mean: float
    standard_error: float
    sigma: float


def parzen_log_likelihood(
    samples: Array,
    test: Array,
    *,
    validation: Array | None = None,
    sigma: float | None = None,
    sigmas: Sequence[float] = SIGMAS,
) -> Parzen:
    """Mean log-likelihood of test (M, D) under windows on generated samples (N, D), in nats.

    uint8 images (n, H, W, C) are taken as pixels in [0, 1], which the ten ``sigmas`` are meant for; anything else as it is. The
    one of ``sigmas`` is used that makes ``validation`` likeliest (the paper took 1,000 images of the training set, and 10,000
    samples), or ``sigma`` where that is given. Sums are in float64 and in blocks.

    Raises InvalidValue that names the side: fewer than two samples, NaN or Inf, widths that differ, neither ``validation`` nor
    ``sigma``, a width that is not above 0.
    """
    windows, tested = _flat(samples, "samples"), _flat(test, "test")
    same_width(windows, tested, "samples", "test")
    if sigma is None:
        if validation is None:
            raise InvalidValue("expected validation data to choose sigma by, or sigma")
        held = _flat(validation, "validation")
        same_width(windows, held, "samples", "validation")
        means = _log_likelihoods(windows, held.to(windows.device), _positive(sigmas)).mean(dim=1)
        sigma = sigmas[int(means.argmax())]
    likelihood = _log_likelihoods(windows, tested.to(windows.device), _positive([sigma]))[0]
    # the paper's code divides by the count, not by one less
    error = likelihood.std(correction=0) / math.sqrt(len(likelihood))
    return Parzen(likelihood.mean().item(), error.item(), float(sigma))


def _log_likelihoods(windows: Tensor, data: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(len(sigmas), M), float64."""
    count, width = windows.shape
    parts = []
    for block in blocks(len(data), count):
        squares = squared_distances(data[block], windows)
        parts.append(torch.stack([torch.logsumexp(squares * (-0.5 / sigma**2), dim=1) for sigma in sigmas]))
    norms = [math.log(count) + width / 2 * math.log(2 * math.pi * sigma**2) for sigma in sigmas]
    return torch.cat(parts, dim=1) - torch.tensor(norms, dtype=torch.float64, device=windows.device)[:, None]


def _positive(sigmas: Sequence[float]) -> Sequence[float]:
    if not len(sigmas) or not all(sigma > 0 and 0 < sigma * sigma < math.inf for sigma in map(float, sigmas)):
        raise InvalidValue(f"expected sigmas above 0, at least one, got {list(sigmas)}")
    return sigmas


def _flat(data: Array, name: str) -> Tensor:
    data = tensor(data, name)
    return pixels(data, name).flatten(1).double() / 255 if is_pictures(data) else rows(data, name)
