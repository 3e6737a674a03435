r"""Sums and products of rows about a fixed shift, from which mean and covariance follow in one pass over any number of rows.

    s += sum_i (x_i - c),    P += sum_i (x_i - c) (x_i - c)^T,
    mean = c + s / n,        covariance = (P - s s^T / n) / (n - 1)

In exact arithmetic the shift c changes nothing. In floating point c = 0 loses the digits of mean^2 / variance, a c near the mean
none (Chan, Golub and LeVeque 1983, equation 1.5 and section 3). Any row near the others will do, and it stays the same from the
first row to the last, so that nothing depends on how rows arrive.

rows (N, D) in any floating type, shift and s (D,) and P (D, D) in float64; s and P are added to in place, for a new P with every
call would cost more than the product of a few rows. Of P only the upper triangle counts, and the kernel of the CPU computes no
more: N D^2 multiply-adds, half of the product X^T X. It gives the same bits with any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ganfast.ops.library import register


def covariance_update_reference(rows: Tensor, shift: Tensor, sums: Tensor, products: Tensor) -> None:
    """Adds rows (N, D) about ``shift`` (D,) to ``sums`` (D,) and, in their upper triangle at least, ``products`` (D, D)."""
    _check(rows, shift, sums, products)
    centred = rows.double() - shift
    sums += centred.sum(dim=0)
    products.addmm_(centred.T, centred)


def _check(rows: Tensor, shift: Tensor, sums: Tensor, products: Tensor) -> None:
    size = rows.shape[-1] if rows.dim() == 2 else -1
    if not rows.is_floating_point() or shift.shape != (size,) or sums.shape != (size,) or products.shape != (size, size):
        shapes = ", ".join(str(tuple(t.shape)) for t in (rows, shift, sums, products))
        raise ValueError(f"expected floating rows (N, D), shift (D,), sums (D,) and products (D, D), got {shapes}, {rows.dtype}")
    if not shift.dtype == sums.dtype == products.dtype == torch.float64:
        raise ValueError(f"expected shift, sums and products in float64, got {shift.dtype}, {sums.dtype}, {products.dtype}")


covariance_update = register(
    "covariance_update(Tensor rows, Tensor shift, Tensor(a!) sums, Tensor(b!) products) -> ()",
    reference=covariance_update_reference,
    fake=_check,
)
