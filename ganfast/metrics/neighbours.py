"""Distances to the k-th nearest neighbour, and the pairs within a reach: float64's answers at the price of fast products.

All N M distances are wanted for nothing but comparisons. :mod:`ganfast.metrics.bounds` settles nearly all of these, and the few
that are left are made on the norm of x - y in float64. That norm is the same bits for (x, y) and (y, x) and depends on no other
row. So a distance equals itself as a reach, duplicates are at distance zero, and nothing depends on blocks or threads, or on the
type that bounds are computed in.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.metrics.bounds import Bounds
from ganfast.metrics.rows import blocks, squared_distances
from ganfast.ops.pair_distances import pair_distances

_TILE = {"cpu": 2048, "cuda": 8192}  # rows and columns of bounds that are there at a time: 16 MB and 256 MB in float32
_WIDE = 512  # features from which on products in bfloat16 save more time than their wider bounds cost
_DOUBTFUL = 1 / 64  # of a tile's pairs: from there on tighter bounds cost less than distances
_SPARE = {torch.bfloat16: 28, torch.float32: 8}  # bounds of a row that are kept beyond k: as the wider ones leave more open
_FEW = 1 / 256  # of all rows: up to which distances cost less than tighter bounds
_SAMPLE = 512  # rows that a typical distance is guessed from


class Pairs(NamedTuple):
    """Rows of x and rows of y, int64 (P,) each."""

    x: Tensor
    y: Tensor


def kth_distances(x: Tensor, k: int, *, tile: int = 0) -> Tensor:
    """The distance of each row (N, D) to its k-th nearest other one, 1 <= k < N; float64 (N,)."""
    found = x.new_zeros(len(x), dtype=torch.float64)
    left = torch.arange(len(x), device=x.device)
    middle = _typical(x, k)
    for dtype in _types(x):
        if len(left) > _FEW * len(x):
            bounds = Bounds(x, x, dtype, middle)
            kept = _smallest(bounds, left, len(x), min(k + _SPARE[dtype], len(x) - 1), tile or _TILE[x.device.type])
            distance, certain = _settled(x, left, k, bounds, kept)
            found[left[certain]] = distance[certain]
            left = left[~certain]
    everyone = torch.arange(len(x), device=x.device)
    for block in blocks(len(left), len(x)):
        i = left[block]
        distances = pair_distances(x, x, i.repeat_interleave(len(x)), everyone.repeat(len(i))).view(len(i), len(x))
        distances[torch.arange(len(i), device=x.device), i] = torch.inf
        found[i] = _kth(distances, k)
    return found


def pairs_within(
    x: Tensor, y: Tensor, reach_x: Tensor, reach_y: Tensor, *, closed: bool = True, tile: int = 0
) -> Iterator[tuple[Pairs, Pairs]]:
    """Tile by tile the pairs with |x_i - y_j| <= reach_x[i], and those with <= reach_y[j]; with < if not ``closed``."""
    middle, size = torch.cat([reach_x, reach_y]).median(), tile or _TILE[x.device.type]
    bounds_in = functools.cache(lambda dtype: Bounds(x, y, dtype, middle))
    for i, j in itertools.product(range(0, len(x), size), range(0, len(y), size)):
        reaches = reach_x[i : i + size, None], reach_y[None, j : j + size]
        for dtype in _types(x):
            bounds = bounds_in(dtype)
            values = bounds.tile(bounds.rows(slice(i, i + size)), slice(j, j + size))
            one, other = (_candidates(bounds, values, reach, i, j, closed) for reach in reaches)
            if int((~one.certain).sum() + (~other.certain).sum()) <= _DOUBTFUL * values.numel():
                break
        yield _decided(x, y, one, closed), _decided(x, y, other, closed)


def _types(x: Tensor) -> list[torch.dtype]:
    """What bounds are computed in, one after the other where they leave something open."""
    wide = x.device.type == "cpu" and x.shape[1] >= _WIDE and _has_bfloat16()
    return [torch.bfloat16, torch.float32] if wide else [torch.float32]


def _has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16, adding up in float32, and PyTorch makes use of it."""
    return bool(torch.backends.mkldnn.enabled) and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _typical(x: Tensor, k: int) -> Tensor:
    """About how far away a k-th neighbour is: among evenly chosen rows, the distance that as large a share of pairs undercuts."""
    some = x[:: -(-len(x) // _SAMPLE)].double()
    squares = squared_distances(some - some.mean(dim=0), some - some.mean(dim=0)).fill_diagonal_(torch.inf)
    rank = max(1, k * len(some) * (len(some) - 1) // (len(x) - 1))
    return squares.flatten().kthvalue(rank).values.sqrt()


def _kth(distances: Tensor, k: int) -> Tensor:
    return distances.topk(k, dim=1, largest=False).values[:, -1]


class _Kept(NamedTuple):
    """Of some rows the smallest bounds (n, keep), in no order, and whose they are."""

    bounds: Tensor
    columns: Tensor

    def add(self, rows: slice, tile: Tensor, first: int) -> None:
        """Replace those of ``rows`` that are larger than ones in a tile of theirs, whose columns count from ``first``."""
        keep = self.bounds.shape[1]
        new = tile.topk(min(keep, tile.shape[1]), dim=1, largest=False, sorted=False)
        values = torch.cat([self.bounds[rows], new.values], dim=1)
        columns = torch.cat([self.columns[rows], new.indices + first], dim=1)
        best = values.topk(keep, dim=1, largest=False, sorted=False)
        self.bounds[rows] = best.values
        self.columns[rows] = columns.gather(1, best.indices)


def _smallest(bounds: Bounds, left: Tensor, count: int, keep: int, size: int) -> _Kept:
    """The ``keep`` smallest bounds of the rows ``left``, against all ``count`` rows but themselves.

    Where these are all rows, a tile serves its mirror image too.
    """
    shape, every = (len(left), keep), len(left) == count
    values = torch.full(shape, torch.inf, dtype=bounds.dtype, device=left.device)
    kept = _Kept(values, torch.zeros(shape, dtype=torch.int64, device=left.device))
    for i in range(0, len(left), size):
        rows = left[i : i + size]
        own = bounds.rows(rows)
        for j in range(i if every else 0, count, size):
            tile = bounds.tile(own, slice(j, j + size))
            itself = ((rows >= j) & (rows < j + size)).nonzero().squeeze(1)
            tile[itself, rows[itself] - j] = torch.inf
            kept.add(slice(i, i + size), tile, j)
            if every and j > i:
                kept.add(slice(j, j + size), tile.T.contiguous(), i)
    return kept


def _settled(x: Tensor, left: Tensor, k: int, bounds: Bounds, kept: _Kept) -> tuple[Tensor, Tensor]:
    """Distances of the rows ``left`` to their k-th neighbours, and for which of them that is certain."""
    values, order = kept.bounds.sort(dim=1)
    columns = kept.columns.gather(1, order)
    distances = x.new_full(values.shape, torch.inf, dtype=torch.float64)
    rows = left[:, None].expand_as(columns)
    distances[:, :k] = pair_distances(x, x, rows[:, :k].flatten(), columns[:, :k].flatten()).view(-1, k)
    # the k-th neighbour is no further away than the furthest of these
    near = values[:, k:] <= bounds.limit(distances[:, :k].amax(dim=1, keepdim=True))
    distances[:, k:][near] = pair_distances(x, x, rows[:, k:][near], columns[:, k:][near])
    found = _kth(distances, k)
    complete = values.shape[1] == len(x) - 1
    return found, (values[:, -1] > bounds.limit(found)) | (found == 0) | complete


class _Candidates(NamedTuple):
    """The pairs of a tile that their bounds allow to be within reach, their reaches (P,), and which certainly are (P,)."""

    pairs: Pairs
    reach: Tensor
    certain: Tensor


def _candidates(bounds: Bounds, values: Tensor, reach: Tensor, i: int, j: int, closed: bool) -> _Candidates:
    """Of a tile (n, m) that begins at rows i and j; reach is (n, 1) or (1, m)."""
    at = (values <= bounds.limit(reach)).nonzero(as_tuple=True)
    pairs, goal = Pairs(at[0] + i, at[1] + j), reach.expand_as(values)[at]
    upper = bounds.upper(values[at], *pairs)
    return _Candidates(pairs, goal, upper <= goal if closed else upper < goal)


def _decided(x: Tensor, y: Tensor, candidates: _Candidates, closed: bool) -> Pairs:
    pairs, reach, within = candidates
    open_ = (~within).nonzero().squeeze(1)
    distance = pair_distances(x, y, pairs.x[open_], pairs.y[open_])
    within[open_] = distance <= reach[open_] if closed else distance < reach[open_]
    return Pairs(pairs.x[within], pairs.y[within])
