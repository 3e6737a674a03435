"""The training images nearest to samples, to see whether a generator repeats what it was shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.errors import InvalidValue, whole
from ganfast.metrics.arrays import Array, tensor
from ganfast.metrics.rows import blocks, bounded_squared_distances, is_pictures, pixels, rows

_KNOWN, _NUMBERS = 8192, 1 << 24  # training samples that are compared at a time, and numbers of them: 128 MB
_SPARE = 8  # candidates beyond k whose distances are taken anew, for rounding may have put them behind others


class Neighbours(NamedTuple):
    """Of each of N samples the k nearest training samples, nearest first: their distances (N, k), float64, and indices (N, k)."""

    distances: Tensor
    indices: Tensor


def nearest_neighbours(samples: Array, training: Array, *, k: int = 5) -> Neighbours:
    """The ``k`` of ``training`` nearest to each of ``samples``, by Euclidean distance; a copy is at distance 0.

    Both are features (N, D) and (M, D), or uint8 images (n, H, W, C) of one size, compared by pixels in [0, 1]. In blocks of
    bounded memory. Pixels find copies and little else; features find what looks alike.

    Raises InvalidType or InvalidValue that names the side: NaN or Inf, sizes that differ, ``k`` larger than ``training``.
    """
    samples, training = tensor(samples, "samples"), tensor(training, "training")
    asked, known = _flat(samples, "samples"), _flat(training, "training")
    if samples.shape[1:] != training.shape[1:]:
        sizes = f"{tuple(samples.shape)} and {tuple(training.shape)}"
        raise InvalidValue(f"expected samples and training of one size, both images or both features, got {sizes}")
    count = whole(k, "k")
    if count > len(known):
        raise InvalidValue(f"k: expected at most the {len(known)} training samples, got {count}")
    known = known.to(asked.device)
    best = [_of_block(asked[block].double(), known, count) for block in blocks(len(asked), min(len(known), _KNOWN))]
    distances, indices = (torch.cat(parts) for parts in zip(*best, strict=True))
    return Neighbours(distances / 255 if is_pictures(samples) else distances, indices)


def _of_block(asked: Tensor, known: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates by the fast squares, of one part of the training samples after the other; then in order of exact distances.

    Where rounding may have left out a nearer one, all distances are taken exactly.
    """
    squares = asked.new_empty(len(asked), 0)
    candidates = torch.empty(len(asked), 0, dtype=torch.long, device=asked.device)
    beyond = asked.new_full((len(asked), 1), torch.inf)  # no square of a sample that was left out is smaller
    step = max(1, min(_KNOWN, _NUMBERS // known.shape[1]))
    off = torch.zeros_like(beyond)
    for start in range(0, len(known), step):
        here, rounding = bounded_squared_distances(asked, known[start : start + step])
        off = torch.maximum(off, rounding)
        squares = torch.cat([squares, here], dim=1)
        numbers = torch.arange(start, start + here.shape[1], device=asked.device).expand(len(asked), -1)
        candidates = torch.cat([candidates, numbers], dim=1)
        if squares.shape[1] > k + _SPARE:
            squares, chosen = squares.topk(k + _SPARE, dim=1, largest=False)
            candidates = candidates.gather(1, chosen)
            beyond = torch.minimum(beyond, squares[:, -1:] - off)
    candidates = candidates.sort(dim=1).values
    exact = torch.stack([(asked - known[column].double()).norm(dim=1) for column in candidates.T], dim=1)
    distances, order = exact.sort(dim=1, stable=True)
    distances, indices = distances[:, :k], candidates.gather(1, order)[:, :k]
    doubtful = (distances[:, -1:].square() >= beyond).flatten()
    for row in doubtful.nonzero().flatten().tolist():
        all_of_it = torch.cat([(part.double() - asked[row]).norm(dim=1) for part in known.split(step)])
        nearest = all_of_it.sort(stable=True)
        distances[row], indices[row] = nearest.values[:k], nearest.indices[:k]
    return distances, indices


def _flat(data: Array, name: str) -> Tensor:
    return pixels(data, name).flatten(1) if is_pictures(data) else rows(data, name, least=1)
