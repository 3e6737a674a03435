"""Spectral norm in Triton: the three ops of the page ganfast/ops/spectral_norm.py, for all weights of a call at once.

Kernels see a weight as it lies in memory, [batch][rows][columns]; W of the maths has the output channels as rows. A plain view
has x = u along the rows and y = v along batch and columns, a transposed one x = v and y = u. ``inner`` says that the columns are
stored as (columns / inner, inner) while W counts them as (inner, columns / inner): channels last.

The weights of a call, their vectors and their views reach a kernel as rows of one table of int64, addresses among them. Sums run
in float32, in float64 for float64 weights; no atomics, so a run gives the same bits again. Offsets are int64.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(2048)  # elements of a program where shape does not matter
CHUNK = tl.constexpr(1024)  # of a vector, at a time
ROWS, WIDTH = tl.constexpr(4), tl.constexpr(512)  # of a tile that is summed along y
DEPTH, COLUMNS = tl.constexpr(32), tl.constexpr(64)  # of one that is summed along x
# a row of the table for an iteration, and of the one for the division and its gradient
WEIGHT, U, V, NEW_U, NEW_V, SUMS, VIEW = (tl.constexpr(i) for i in range(7))
GRAD, OUT, ELEMENTS = (tl.constexpr(i) for i in (3, 4, 5))
ROW = tl.constexpr(11)

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _address(row_ptr, column: tl.constexpr, DTYPE: tl.constexpr):
    return tl.load(row_ptr + column).to(tl.pointer_type(DTYPE))


@triton.jit
def _view(row_ptr):
    batch, rows = tl.load(row_ptr + VIEW), tl.load(row_ptr + VIEW + 1)
    columns, inner = tl.load(row_ptr + VIEW + 2), tl.load(row_ptr + VIEW + 3)
    return batch, rows, columns, inner, tl.load(row_ptr + VIEW + 4) != 0


@triton.jit
def _position(j, columns, inner):
    """Where in y, as W counts, the memory column j belongs."""
    return tl.where(inner == columns, j, (j % inner) * (columns // inner) + j // inner)


@triton.jit
def _sum_along_y(w_ptr, y_ptr, x_ptr, tile, rows, length, columns, inner, WIDE: tl.constexpr):
    r = tile * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, WIDTH], WIDE)
    for start in range(0, length, WIDTH):
        j = start + tl.arange(0, WIDTH).to(tl.int64)
        offset = j // columns * (rows * columns) + j % columns
        mask = (r < rows)[:, None] & (j < length)[None, :]
        w = tl.load(w_ptr + offset[None, :] + r[:, None] * columns, mask, 0.0).to(WIDE)
        y = tl.load(y_ptr + _position(j, columns, inner), j < length, 0.0)
        total += w * y[None, :]
    tl.store(x_ptr + r, tl.sum(total, 1), r < rows)


@triton.jit
def _sum_along_x(w_ptr, x_ptr, y_ptr, tile, rows, length, columns, WIDE: tl.constexpr):
    j = tile * COLUMNS + tl.arange(0, COLUMNS)
    offset = j // columns * (rows * columns) + j % columns
    total = tl.zeros([DEPTH, COLUMNS], WIDE)
    for start in range(0, rows, DEPTH):
        r = start + tl.arange(0, DEPTH).to(tl.int64)
        mask = (r < rows)[:, None] & (j < length)[None, :]
        w = tl.load(w_ptr + offset[None, :] + r[:, None] * columns, mask, 0.0).to(WIDE)
        x = tl.load(x_ptr + r, r < rows, 0.0)
        total += w * x[:, None]
    tl.store(y_ptr + j, tl.sum(total, 0), j < length)


@triton.jit
def product(table_ptr, OF_U: tl.constexpr, FACTOR: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """sums = W v for OF_U, otherwise W^T u, in the order of memory; FACTOR is the column of v or u.

    Moves |W| bytes. A program reads 4 rows of a weight and all of y, or 64 positions of y and all of x.
    """
    row_ptr = table_ptr + tl.program_id(0).to(tl.int64) * ROW
    tile = tl.program_id(1).to(tl.int64)
    batch, rows, columns, inner, transposed = _view(row_ptr)
    w_ptr, sums_ptr = _address(row_ptr, WEIGHT, DTYPE), _address(row_ptr, SUMS, WIDE)
    factor_ptr = _address(row_ptr, FACTOR, WIDE)
    length = batch * columns
    if transposed == OF_U:
        if tile * COLUMNS < length:
            _sum_along_x(w_ptr, factor_ptr, sums_ptr, tile, rows, length, columns, WIDE)
    else:
        if tile * ROWS < rows:
            _sum_along_y(w_ptr, factor_ptr, sums_ptr, tile, rows, length, columns, inner, WIDE)


@triton.jit
def direction(table_ptr, sigmas_ptr, eps, OF_U: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, WIDE: tl.constexpr):
    """The vector in column AFTER = sums / |sums|, or the one in column BEFORE where |sums| is at most eps; sigma = |sums|.

    Moves the vectors. A program reads one weight's sums, twice.
    """
    i = tl.program_id(0).to(tl.int64)
    row_ptr = table_ptr + i * ROW
    batch, rows, columns, inner, transposed = _view(row_ptr)
    is_y = transposed == OF_U
    length = tl.where(is_y, batch * columns, rows)
    sums_ptr = _address(row_ptr, SUMS, WIDE)
    squares = tl.zeros([CHUNK], tl.float64)
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        element = tl.load(sums_ptr + at, at < length, 0.0).to(tl.float64)
        squares += element * element
    norm = tl.sqrt(tl.sum(squares, 0)).to(WIDE)
    before_ptr, after_ptr = _address(row_ptr, BEFORE, WIDE), _address(row_ptr, AFTER, WIDE)
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        position = tl.where(is_y, _position(at, columns, inner), at)
        before = tl.load(before_ptr + position, at < length, 0.0)
        element = tl.load(sums_ptr + at, at < length, 0.0)
        tl.store(after_ptr + position, tl.where(norm <= eps, before, element / norm), at < length)
    tl.store(sigmas_ptr + i, norm)


@triton.jit
def projection(table_ptr, sigmas_ptr, WIDE: tl.constexpr):
    """sigma = <u, sums> for the sums W v.

    Moves the vectors. A program reads one weight's u and sums.
    """
    i = tl.program_id(0).to(tl.int64)
    row_ptr = table_ptr + i * ROW
    batch, rows, columns, inner, transposed = _view(row_ptr)
    length = tl.where(transposed, batch * columns, rows)
    sums_ptr, u_ptr = _address(row_ptr, SUMS, WIDE), _address(row_ptr, U, WIDE)
    products = tl.zeros([CHUNK], tl.float64)
    for start in range(0, length, CHUNK):
        at = start + tl.arange(0, CHUNK).to(tl.int64)
        position = tl.where(transposed, _position(at, columns, inner), at)
        u = tl.load(u_ptr + position, at < length, 0.0).to(tl.float64)
        products += tl.load(sums_ptr + at, at < length, 0.0).to(tl.float64) * u
    tl.store(sigmas_ptr + i, tl.sum(products, 0).to(WIDE))


@triton.jit
def division(table_ptr, sigmas_ptr, eps, DTYPE: tl.constexpr, OTHER: tl.constexpr, WIDE: tl.constexpr):
    """out = W / sigma in the type OTHER, or W itself where |sigma| is at most eps.

    Moves |W| and |out| bytes. A program reads 2048 elements of a weight.
    """
    i = tl.program_id(0).to(tl.int64)
    row_ptr = table_ptr + i * ROW
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.load(row_ptr + ELEMENTS)
    sigma = tl.load(sigmas_ptr + i)
    scale = tl.where(tl.abs(sigma) <= eps, 1.0, sigma)
    w = tl.load(_address(row_ptr, WEIGHT, DTYPE) + at, mask, 0.0).to(WIDE)
    tl.store(_address(row_ptr, OUT, OTHER) + at, (w / scale).to(OTHER), mask)


@triton.jit
def inner_product(table_ptr, parts_ptr, DTYPE: tl.constexpr, OTHER: tl.constexpr, WIDE: tl.constexpr):
    """parts[i, tile] = the tile's share of <G, W>, zero beyond the end of the weight; G is of the type OTHER.

    Moves |W| and |G| bytes. A program reads 2048 elements of both.
    """
    i = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1).to(tl.int64)
    row_ptr = table_ptr + i * ROW
    at = tile * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.load(row_ptr + ELEMENTS)
    w = tl.load(_address(row_ptr, WEIGHT, DTYPE) + at, mask, 0.0).to(WIDE)
    g = tl.load(_address(row_ptr, GRAD, OTHER) + at, mask, 0.0).to(WIDE)
    tl.store(parts_ptr + i * tl.num_programs(1) + tile, tl.sum(w * g, 0).to(tl.float64))


@triton.jit
def weight_gradient(table_ptr, sigmas_ptr, inner_products_ptr, eps, DTYPE: tl.constexpr, OTHER: tl.constexpr, WIDE: tl.constexpr):
    """out = G / sigma - (<G, W> / sigma^2) u v^T, or G where |sigma| is at most eps; G is of the type OTHER.

    Moves |G| and |W| bytes. A program reads a tile of G, 4 rows by 512 positions of y, and what of u and v belongs to it.
    """
    i = tl.program_id(0).to(tl.int64)
    row_ptr = table_ptr + i * ROW
    batch, rows, columns, inner, transposed = _view(row_ptr)
    length = batch * columns
    across = tl.cdiv(length, WIDTH)
    tile = tl.program_id(1).to(tl.int64)
    if tile < tl.cdiv(rows, ROWS) * across:
        sigma = tl.load(sigmas_ptr + i)
        unscaled = tl.abs(sigma) <= eps
        scale = tl.where(unscaled, 1.0, sigma)
        wide_scale = scale.to(tl.float64)
        c = tl.where(unscaled, 0.0, tl.load(inner_products_ptr + i) / (wide_scale * wide_scale)).to(WIDE)
        r = tile // across * ROWS + tl.arange(0, ROWS)
        j = tile % across * WIDTH + tl.arange(0, WIDTH)
        offset = (j // columns * (rows * columns) + j % columns)[None, :] + r[:, None] * columns
        u_ptr, v_ptr = _address(row_ptr, U, WIDE), _address(row_ptr, V, WIDE)
        x_ptr, y_ptr = tl.where(transposed, v_ptr, u_ptr), tl.where(transposed, u_ptr, v_ptr)
        x = tl.load(x_ptr + r, r < rows, 0.0)
        y = tl.load(y_ptr + _position(j, columns, inner), j < length, 0.0)
        mask = (r < rows)[:, None] & (j < length)[None, :]
        g = tl.load(_address(row_ptr, GRAD, OTHER) + offset, mask, 0.0).to(WIDE)
        out = g / scale - c * x[:, None] * y[None, :]
        tl.store(_address(row_ptr, OUT, DTYPE) + offset, out.to(DTYPE), mask)


# ---- the ops


def power_iteration(
    weights: Sequence[Tensor], u: Tensor, v: Tensor, dims: Sequence[int], n_iterations: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """New u, new v and sigmas (L,) after ``n_iterations``; with none at all, copies and ``u^T W v``."""
    if n_iterations < 0:
        raise ValueError(f"expected n_iterations >= 0, got {n_iterations}")
    u, v = u.contiguous(), v.contiguous()
    stored, views = _readable(weights, u, v, dims)
    new_u, new_v, sigmas = torch.empty_like(u), torch.empty_like(v), u.new_empty(len(stored))
    pairs, new_pairs = _pairs(u, v, views), _pairs(new_u, new_v, views)
    if not stored:
        return new_u, new_v, sigmas
    sums = [torch.empty_like(max(pair, key=Tensor.numel)) for pair in pairs]
    rows = [
        [*(tensor.data_ptr() for tensor in (w, *pair, *new_pair, room)), *view]
        for w, pair, new_pair, room, view in zip(stored, pairs, new_pairs, sums, views, strict=True)
    ]
    table = _table(rows, u.device)
    tiles = max(
        max(triton.cdiv(height, ROWS.value), triton.cdiv(batch * columns, COLUMNS.value)) for batch, height, columns, *_ in views
    )
    types: dict[str, Any] = {"DTYPE": TYPES[stored[0].dtype], "WIDE": TYPES[u.dtype]}
    many, each = (len(rows), max(1, tiles)), (len(rows),)
    with _device(u):
        if n_iterations == 0:
            product[many](table, OF_U=True, FACTOR=V, **types)
            projection[each](table, sigmas, WIDE=types["WIDE"])
            return new_u.copy_(u), new_v.copy_(v), sigmas
        old_u, old_v = U, V
        for _ in range(n_iterations):
            product[many](table, OF_U=True, FACTOR=old_v, **types)
            direction[each](table, sigmas, eps, OF_U=True, BEFORE=old_u, AFTER=NEW_U, WIDE=types["WIDE"])
            old_u = NEW_U
            product[many](table, OF_U=False, FACTOR=old_u, **types)
            direction[each](table, sigmas, eps, OF_U=False, BEFORE=old_v, AFTER=NEW_V, WIDE=types["WIDE"])
            old_v = NEW_V
    return new_u, new_v, sigmas


def spectral_norm(
    weights: Sequence[Tensor],
    u: Tensor,
    v: Tensor,
    dims: Sequence[int],
    n_iterations: int,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Every weight over its sigma, in the weight's layout, and in ``dtype`` or the weight's own; and what the iteration gives."""
    new_u, new_v, sigmas = power_iteration(weights, u, v, dims, n_iterations, eps)
    if not weights:
        return [], new_u, new_v, sigmas
    outputs = [torch.empty_like(w, dtype=_beside(dtype or w.dtype, u.dtype)) for w in weights]
    sources = [_laid_out(_stored(w, u.dtype), out) for w, out in zip(weights, outputs, strict=True)]
    rows = [[w.data_ptr(), 0, 0, 0, out.data_ptr(), w.numel()] for w, out in zip(sources, outputs, strict=True)]
    table = _table(rows, u.device)
    with _device(u):
        division[_flat(sources)](table, sigmas, eps, **_types(sources[0], outputs[0], u))
    return [out.to(dtype or w.dtype) for out, w in zip(outputs, weights, strict=True)], new_u, new_v, sigmas


def spectral_norm_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    u: Tensor,
    v: Tensor,
    sigmas: Tensor,
    dims: Sequence[int],
    eps: float,
) -> list[Tensor]:
    """The gradients by the weights, in their dtype and layout, from those by the normalised ones."""
    if not weights:
        return []
    _expect([g.shape for g in grads] == [w.shape for w in weights], "gradients of the weights' shapes")
    _expect(len({g.dtype for g in grads}) == 1, "gradients of one dtype")
    _expect(sigmas.dtype == u.dtype and sigmas.shape == (len(weights),), f"{len(weights)} sigmas of u's dtype")
    u, v, sigmas = u.contiguous(), v.contiguous(), sigmas.contiguous()
    stored, views = _readable(weights, u, v, dims)
    laid_out = [_laid_out(_stored(g, u.dtype), w) for g, w in zip(grads, stored, strict=True)]
    outputs = [torch.empty_like(w) for w in stored]
    rows = [
        [w.data_ptr(), *(x.data_ptr() for x in pair), g.data_ptr(), out.data_ptr(), w.numel(), *view]
        for w, pair, g, out, view in zip(stored, _pairs(u, v, views), laid_out, outputs, views, strict=True)
    ]
    tiles = max(
        triton.cdiv(height, ROWS.value) * triton.cdiv(batch * columns, WIDTH.value) for batch, height, columns, *_ in views
    )
    table, grid = _table(rows, u.device), _flat(stored)
    parts = sigmas.new_empty(grid, dtype=torch.float64)
    types = _types(stored[0], laid_out[0], u)
    with _device(u):
        inner_product[grid](table, parts, **types)
        weight_gradient[len(rows), max(1, tiles)](table, sigmas, parts.sum(1), eps, **types)
    return [_laid_out(out.to(w.dtype), torch.empty_like(w)) for out, w in zip(outputs, weights, strict=True)]


# ---- what they share

_COPIED_BY_GRAPHS: list[Tensor] = []  # a captured graph copies its tables again at each replay


def _table(rows: list[list[int]], device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    padded = [row + [0] * (ROW.value - len(row)) for row in rows]
    on_gpu = device.type == "cuda"
    host = torch.tensor(padded, dtype=torch.int64, pin_memory=on_gpu)
    if on_gpu and torch.cuda.is_current_stream_capturing():
        _COPIED_BY_GRAPHS.append(host)
    return host.to(device, non_blocking=True)


def _expect(held: bool, what: str) -> None:
    if not held:
        raise ValueError(f"expected {what}")


def _beside(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype:
    """What the kernels read or write for ``dtype``: itself, unless it is float64 and u, v and sigma are not, or the reverse."""
    return dtype if (dtype == torch.float64) == (wide == torch.float64) else wide


def _stored(tensor: Tensor, wide: torch.dtype) -> Tensor:
    return tensor.to(_beside(tensor.dtype, wide))


def _readable(weights: Sequence[Tensor], u: Tensor, v: Tensor, dims: Sequence[int]) -> tuple[list[Tensor], list[list[int]]]:
    """The weights as the kernels read them, and their views."""
    _expect(u.dtype == v.dtype and u.dtype in (torch.float32, torch.float64), "u and v both in float32 or both in float64")
    _expect(len({w.dtype for w in weights}) <= 1, "weights of one dtype")
    stored = [_viewable(_stored(w, u.dtype), dim) for w, dim in zip(weights, dims, strict=True)]
    return stored, [_view_of(w, dim) for w, dim in zip(stored, dims, strict=True)]


def _pairs(u: Tensor, v: Tensor, views: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """The u and v of every weight, where they lie in those of all."""
    lengths = [
        (batch * columns, rows) if transposed else (rows, batch * columns) for batch, rows, columns, _, transposed in views
    ]
    us, vs = (vector.split([pair[side] for pair in lengths]) for side, vector in enumerate((u, v)))
    return list(zip(us, vs, strict=True))


def _is_channels_last(weight: Tensor) -> bool:
    return weight.dim() > 2 and weight.movedim(1, -1).is_contiguous()


def _viewable(weight: Tensor, dim: int) -> Tensor:
    return weight if dim <= 1 and _is_channels_last(weight) else weight.contiguous()


def _view_of(weight: Tensor, dim: int) -> list[int]:
    """batch, rows, columns, inner, transposed."""
    rows, before, after = weight.shape[dim], math.prod(weight.shape[:dim]), math.prod(weight.shape[dim + 1 :])
    if weight.is_contiguous():
        return [1, before, rows, rows, 1] if after == 1 else [before, rows, after, after, 0]
    if dim == 0:
        return [1, rows, after, weight.shape[1], 0]
    return [1, before * after, rows, rows, 1]


def _laid_out(tensor: Tensor, model: Tensor) -> Tensor:
    """``tensor`` with the strides of ``model``."""
    if tensor.stride() == model.stride():
        return tensor
    return torch.empty_like(model, dtype=tensor.dtype).copy_(tensor)


def _flat(weights: Sequence[Tensor]) -> tuple[int, int]:
    return len(weights), max(1, *(triton.cdiv(w.numel(), BLOCK.value) for w in weights))


def _types(weight: Tensor, other: Tensor, u: Tensor) -> dict[str, Any]:
    return {"DTYPE": TYPES[weight.dtype], "OTHER": TYPES[other.dtype], "WIDE": TYPES[u.dtype]}


def _device(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
