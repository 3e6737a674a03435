r"""Inception Score: how sure a classifier is of each sample, and how many classes it sees (Salimans et al. 2016, section 4).

    IS = exp( E_x KL( p(y|x) | p(y) ) ) = exp( H(p(y)) - E_x H(p(y|x)) ),    p(y) = E_x p(y|x)

From 1, all samples alike to the classifier, to K, each of one class for certain and all K classes equally often. It is taken of
each of several splits of the samples; their mean and deviation are what papers quote.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array
from ganfast.metrics.draws import Seed, permutations
from ganfast.metrics.rows import rows

_CHUNK = 4096  # samples at a time: 33 MB of 1008 logits in float64


def inception_score(
    logits: Array, *, splits: int = 10, shuffle: bool = True, seed: Seed = 2020, ddof: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation, over ``splits`` equal parts, of the Inception Score of logits (N, K); between 1 and K.

    The defaults are torch-fidelity's. torchmetrics' score is ``seed=torch.default_generator, ddof=1`` where ``splits`` divides N:
    it draws unseeded, divides by splits - 1, and cuts other N into parts of one size and a rest.

    Raises InvalidType: no real numbers. Raises InvalidValue: fewer than two samples, fewer than ``splits``, NaN or Inf.
    """
    values = rows(logits, "logits")
    parts, count = whole(splits, "splits"), len(values)
    if count < parts:
        raise InvalidValue(f"{parts} splits need as many samples, got {count}: ask for fewer splits")
    if not 0 <= ddof < parts:
        raise InvalidValue(f"expected 0 <= ddof < splits, got ddof={ddof} with {parts} splits")
    order = permutations(seed)(count) if shuffle else torch.arange(count)
    edges = [i * count // parts for i in range(parts + 1)]
    scores = torch.stack([_score(values, order[a:b].to(values.device)) for a, b in itertools.pairwise(edges)])
    return scores.mean().item(), scores.std(correction=ddof).item()


def _score(logits: Tensor, which: Tensor) -> Tensor:
    """By entropies, which need no logarithm of a class that nothing is assigned to."""
    total = logits.new_zeros(logits.shape[1], dtype=torch.float64)
    certainty = total.new_zeros(())
    for chunk in which.split(_CHUNK):
        log_p = logits[chunk].double().log_softmax(dim=1)
        p = log_p.exp()
        total += p.sum(dim=0)
        certainty += (p * log_p).sum()
    marginal = total / len(which)
    return (certainty / len(which) - torch.xlogy(marginal, marginal).sum()).exp()
