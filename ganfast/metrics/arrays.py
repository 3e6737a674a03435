"""What callers hand in as numbers, arrays and tensors alike, as tensors that were looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.errors import InvalidType, InvalidValue

Array = NDArray[Any] | Tensor

LARGEST = 1e144  # of features: so that the squares of as many as an int64 counts can be added up in float64


def tensor(array: Array, name: str = "the array") -> Tensor:
    """The values without their graph."""
    return as_tensor(array, name).detach()


def as_tensor(array: Array, name: str) -> Tensor:
    """An array or a tensor of real numbers as a tensor, with its graph; raises InvalidType that names it."""
    if isinstance(array, Tensor):
        if array.is_complex() or array.layout != torch.strided:
            raise InvalidType(f"{name}: expected dense real numbers, got {array.dtype} in {array.layout}")
        return array
    try:
        # copied, since torch warns of read-only ones, such as memory maps
        values = np.array(array)
    except (ValueError, TypeError) as error:
        raise InvalidType(f"{name}: expected an array or a tensor, got {type(array).__name__}: {error}") from None
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8 or not values.dtype.isnative:
        raise InvalidType(
            f"{name}: expected real numbers of at most 64 bits in this machine's byte order, got {values.dtype.str}"
        )
    return torch.from_numpy(values)


def as_floats(numbers: Tensor) -> Tensor:
    """In float64, but for the types that all torch ops take."""
    return numbers if numbers.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else numbers.double()


def check_numbers(array: Tensor, name: str, largest: float = LARGEST) -> None:
    """Raises InvalidValue that counts NaN and Inf, or tells of numbers whose squares would not add up."""
    if array.numel() == 0:
        return
    array = array.detach()
    low, high = (extreme.item() for extreme in array.aminmax())  # both NaN where one value is
    reach = max(-low, high)
    if reach <= largest:
        return
    if bad := int((~array.isfinite()).sum()):
        raise InvalidValue(f"{name} holds {bad} values that are NaN or Inf, of {array.numel()}")
    raise InvalidValue(f"{name} holds numbers too large to square and add up in float64: {reach:.3g}, at most {largest:.3g}")
