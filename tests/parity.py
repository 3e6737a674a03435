"""The one rule that holds a backend of an op against PyTorch: at most twice PyTorch's own rounding error, and a floor.

    err(backend, exact) <= 2 err(PyTorch in the same dtype, exact) + floor(dtype, reduce_length)

with ``exact`` the reference in float64 on the same inputs, and err(x) = max |x - exact| / max |exact|: relative to the largest
element, because one that cancels to almost nothing carries the rounding of the others. Where all of them may cancel, the test
gives the size of what was subtracted as the scale. The factor two allows for a sum in another order; the floor for cases in
which PyTorch happens to be exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def floor(dtype: torch.dtype, reduce_length: int) -> float:
    """One rounding of the result, and those of a sum of ``reduce_length`` terms: a pairwise one's, as deep as their logarithm.

    In float64 the reference is its own exact value and PyTorch's error reads zero. There the floor is the bound of a plain sum,
    one rounding a term, which is still far from any mistake.
    """
    roundings = reduce_length if dtype == torch.float64 else math.log2(max(1, reduce_length))
    return torch.finfo(dtype).eps * (1 + roundings)


def error(tensor: Tensor, exact: Tensor, scale: float) -> float:
    return (tensor.double() - exact).abs().max().item() / scale if tensor.numel() else 0.0


def assert_parity(
    actual: Tensor, same_dtype: Tensor, exact: Tensor, *, reduce_length: int = 1, scale: float | None = None, name: str = "result"
) -> None:
    """Assert the rule, that shapes and dtypes agree, and that NaN, Inf and -Inf stand where PyTorch has them.

    ``actual`` is the backend's, ``same_dtype`` what the reference makes of the same arguments, ``exact`` what it makes of them in
    float64. ``reduce_length`` counts the terms that one element sums up in the result's dtype. Without ``scale``, errors are
    relative to the largest exact element, and absolute where that is zero.
    """
    assert exact.dtype == torch.float64, f"{name}: the exact values are {exact.dtype}"
    assert actual.dtype == same_dtype.dtype, f"{name}: expected {same_dtype.dtype}, got {actual.dtype}"
    assert actual.shape == same_dtype.shape == exact.shape, (
        f"{name}: expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}"
    )
    misplaced = _kind(actual) != _kind(same_dtype)
    if misplaced.any():
        where = tuple(misplaced.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: NaN or Inf at other places than PyTorch's, {int(misplaced.sum())} of {actual.numel()};"
            f" first at {where}: expected {same_dtype[where].item()}, got {actual[where].item()}"
        )
    finite = same_dtype.isfinite()
    actual, same_dtype, exact = actual[finite], same_dtype[finite], exact[finite]
    if scale is None:
        scale = exact.abs().max().item() if exact.numel() else 0.0
    err, torchs = (error(tensor, exact, scale or 1.0) for tensor in (actual, same_dtype))
    least = floor(same_dtype.dtype, reduce_length)
    # said this way round, so that an error of NaN fails
    assert err <= 2 * torchs + least, (
        f"{name} ({same_dtype.dtype}): error {err:.3g}, expected at most 2 * {torchs:.3g} (PyTorch's) + {least:.3g} (floor)"
    )


def _kind(tensor: Tensor) -> Tensor:
    """0 finite, 1 NaN, 2 Inf, 3 -Inf."""
    return tensor.isnan() + 2 * tensor.isposinf() + 3 * tensor.isneginf()
