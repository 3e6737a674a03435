r"""Lower bounds on all distances of two sets of rows, from one product of the rows rounded to bfloat16 or float32.

With a and b the rounded rows,

    |d(x, y)^2 - (|x|^2 + |y|^2 - 2 a . b)| <= eta (|x|^2 + |y|^2),

where eta has two parts. Rows lose shares theta_x and theta_y of their norms to rounding, which moves 2 x . y by at most
(theta_x + theta_y + theta_x theta_y)(|x|^2 + |y|^2), by Cauchy-Schwarz. And a sum of D products in float32, in any order, is off
by at most 2^-24 D times the sum of their magnitudes (Higham 2002, section 3.1), of which twice as much is allowed.

The norms, less the slack, and a constant, the middle, ride along as columns: the product is at once a lower bound on d^2 -
middle. It comes rounded to the rows' type, and rounding keeps order, so d <= r implies that the bound is at most r^2 - middle in
that type. With a middle near the distances that are asked for, these are small numbers, of which rounding takes little.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ganfast.metrics.feature_network import whole_float32

_CHUNK = 1 << 18  # numbers of a set of rows that are there in float64 at a time
_PIECES = 3  # columns for a number: 24 bits in bfloat16
_FLOOR = 1e-24  # of the largest squared norm: below it products might leave float32's range
_SAMPLE = 512  # rows that the centre is the median of


class Bounds:
    """Of the distances between rows x (N, D) and y (M, D); ``middle`` is about how large those in question are."""

    def __init__(self, x: Tensor, y: Tensor, dtype: torch.dtype, middle: Tensor) -> None:
        # any one will do, one near to most rows keeps most digits: the median, which an outlier does not move
        centre = y[:: -(-len(y) // _SAMPLE)].double().median(dim=0).values
        low, high = torch.stack([torch.stack(side.aminmax()).double() for side in (x, y)[x is y :]]).unbind(dim=1)
        reach = (high.max() - low.min()) * x.shape[1] ** 0.5  # from the centre, at most
        self.dtype = dtype
        self._scale = 1 / torch.where(reach > 0, reach, 1.0)
        self._middle = (middle * self._scale).square()
        one = _rounded(x, centre, self._scale, dtype)
        other = one if x is y else _rounded(y, centre, self._scale, dtype)
        share = one.share + other.share + one.share * other.share
        # the magnitudes come to 2 (|x|^2 + |y|^2) + middle, for norms ride along; the last term is for all else that is rounded
        eta = share + 2.0**-22 * (x.shape[1] + 2 * _PIECES) + 2.0**-20
        self._slack_x, self._slack_y = (eta * (_floored(side.squares) + self._middle / 2) * (reach > 0) for side in (one, other))
        self._left = self._with_columns(-2 * one.rows, one.squares - self._slack_x, first=True)
        self._right = self._with_columns(other.rows, other.squares - self._slack_y, first=False)

    def _with_columns(self, rows: Tensor, squares: Tensor, *, first: bool) -> Tensor:
        rest, pieces = squares - self._middle / 2, []
        for _ in range(_PIECES):
            pieces.append(rest.to(self.dtype))
            rest = rest - pieces[-1].double()
        norm, ones = torch.stack(pieces, dim=1), rows.new_ones(len(rows), _PIECES)
        return torch.cat([rows, norm, ones] if first else [rows, ones, norm], dim=1)

    def rows(self, i: slice | Tensor) -> Tensor:
        """Rows of x as :meth:`tile` takes them."""
        return self._left[i]

    def tile(self, rows: Tensor, j: slice) -> Tensor:
        """Lower bounds on d(x_i, y_j)^2 - middle, in the unit and the type of :meth:`limit`."""
        with whole_float32():
            return rows @ self._right[j].T

    def limit(self, distance: Tensor) -> Tensor:
        """What the bound of a pair that is no further apart than ``distance`` does not exceed."""
        return ((distance * self._scale).square() - self._middle).to(self.dtype)

    def upper(self, bound: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Distances (P,) in float64 that pairs of rows i and j with these bounds do not exceed."""
        value = bound.double()
        rounding = torch.finfo(self.dtype).eps * value.abs()
        square = value + rounding + self._middle + 2 * (self._slack_x[i] + self._slack_y[j])
        return square.clamp(min=0).sqrt() / self._scale


class _Rounded(NamedTuple):
    """``rows`` (n, D), centred, scaled and rounded; ``squares`` (n,) of their norms before; what ``share`` of a norm was lost."""

    rows: Tensor
    squares: Tensor
    share: Tensor


def _rounded(x: Tensor, centre: Tensor, scale: Tensor, dtype: torch.dtype) -> _Rounded:
    rows, squares, lost = [], [], []
    for chunk in x.split(max(1, _CHUNK // x.shape[1])):
        centred = (chunk.double() - centre) * scale
        rows.append(centred.to(dtype))
        squares.append(centred.square().sum(dim=1))
        lost.append((centred - rows[-1].double()).square().sum(dim=1))
    norms = torch.cat(squares)
    return _Rounded(torch.cat(rows), norms, (torch.cat(lost) / _floored(norms)).max().sqrt())


def _floored(squares: Tensor) -> Tensor:
    return squares.clamp(min=_FLOOR)
