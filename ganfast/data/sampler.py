"""Batches as a function of (seed, draw number): resuming, prefetching and distributing need no state beyond the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast.data import host
from ganfast.data.dataset import Dataset
from ganfast.data.host import flips, permuted
from ganfast.errors import InvalidValue, near
from ganfast.ops.gather_images import gather_images

__all__ = ["Sampler", "flips", "permuted"]

COPY_BLOCK = 64 << 20  # bytes moved to the device at a time
RESIDENT_SHARE = 0.5  # of the device's free memory that the data may take


@dataclass(frozen=True)
class Draws:
    """Row numbers of consecutive draws, and which are mirrored, by group; tensors on the device where the data live there."""

    rows: Mapping[int, Any]
    mirrored: Mapping[int, Any]

    def part(self, start: int, stop: int) -> Draws:
        """Draws ``start`` to ``stop - 1`` of these, in the same memory."""
        return Draws(*({group: some[start:stop] for group, some in kind.items()} for kind in (self.rows, self.mirrored)))

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, where the data live on the device."""
        return [*self.rows.values(), *self.mirrored.values()]

    def of(self, tensors: Sequence[Tensor]) -> Draws:
        """Such draws made of other :attr:`tensors`."""
        middle = len(self.rows)
        return Draws(*(dict(zip(self.rows, some, strict=True)) for some in (tensors[:middle], tensors[middle:])))


class Sampler:
    """Draws batches of a :class:`~ganfast.data.Dataset` by number.

    Rows come by epochs: each visits every row of a group once, in an order keyed by (seed, salt, group, epoch). Images come as
    float32 (count, C, H, W) in [-1, 1], x / 127.5 - 1, ``channels_last`` in memory or contiguous, mirrored by a fair coin per
    draw if ``flip``; points as float32 (count, D); labels as int64 (count,). Fields of one group share their rows and flips.

    On a GPU the data live on the device in uint8 and are gathered there, as long as they take at most half of its free memory;
    otherwise batches are made on the host and copied. Values are the same either way.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        device: str | torch.device = "cpu",
        flip: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.device = torch.device(device)
        self.flip = flip
        self.channels_last = channels_last
        self.resident = False
        self._data: dict[str, Any] = {field: array for group in dataset.groups.values() for field, array in group.items()}
        self._group = {field: number for number, group in enumerate(dataset.groups.values()) for field in group}
        self._rows = [len(next(iter(group.values()))) for group in dataset.groups.values()]
        if self.device.type == "cuda" and self._fits():
            self.make_resident()

    def make_resident(self) -> None:
        """Moves the data to the device, where batches are gathered from then on."""
        self._data = {field: _to_device(array, self.device) for field, array in self._data.items()}
        self.resident = True

    def batch(self, start: int, count: int, fields: Sequence[str], salt: int = 0) -> dict[str, Tensor]:
        """Draws ``start`` to ``start + count - 1`` of each field named; a different ``salt`` is an unrelated order.

        Raises :class:`~ganfast.errors.InvalidValue` for a field that the data set does not have, naming those it has.
        """
        return self.take(self.draws(start, count, fields, salt), fields)

    def draws(self, start: int, count: int, fields: Sequence[str], salt: int = 0) -> Draws:
        """What decides these draws; :meth:`take` makes batches of any part of them. Raises as :meth:`batch` does."""
        for field in fields:
            if field not in self._data:
                raise InvalidValue(f"data set {self.dataset.name!r} has no field {field!r}{near(field, self._data)}")
        rows: dict[int, Any] = {}
        mirrored: dict[int, Any] = {}
        for group in dict.fromkeys(self._group[field] for field in fields):
            stream = salt * len(self._rows) + group
            rows[group] = permuted(start, count, self._rows[group], self.seed, stream)
            mirrored[group] = flips(start, count, self.seed, stream) if self.flip else np.zeros(count, np.bool_)
            if self.resident:
                rows[group], mirrored[group] = self._send(rows[group]), self._send(mirrored[group])
        return Draws(rows, mirrored)

    def take(self, draws: Draws, fields: Sequence[str]) -> dict[str, Tensor]:
        """The batch of ``draws``, which were made for these fields or more. Nothing waits for the device."""
        batch: dict[str, Tensor] = {}
        for group in dict.fromkeys(self._group[field] for field in fields):
            mine = [field for field in fields if self._group[field] == group]
            make = self._on_device if self.resident else self._on_host
            batch |= make(mine, draws.rows[group], draws.mirrored[group])
        return {field: batch[field] for field in fields}

    def _on_host(self, fields: Sequence[str], rows: NDArray[np.int64], mirrored: NDArray[np.bool_]) -> dict[str, Tensor]:
        batch = {}
        for field in fields:
            array: NDArray[Any] = self._data[field]
            if array.dtype == np.uint8:
                _, height, width, channels = array.shape
                shape = (height, width, channels) if self.channels_last else (channels, height, width)
                tensor = torch.empty((len(rows), *shape), pin_memory=self.device.type == "cuda")
                host.gather_images(array, rows, mirrored, tensor.numpy(), self.channels_last)
                tensor = tensor.permute(0, 3, 1, 2) if self.channels_last else tensor
            else:
                tensor = torch.from_numpy(array[rows])
            batch[field] = tensor.to(self.device, non_blocking=True)
        return batch

    def _on_device(self, fields: Sequence[str], rows: Tensor, mirrored: Tensor) -> dict[str, Tensor]:
        batch = {}
        for field in fields:
            data = self._data[field]
            images = data.dtype == torch.uint8
            batch[field] = gather_images(data, rows, mirrored, self.channels_last) if images else data.index_select(0, rows)
        return batch

    def _send(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _fits(self) -> bool:
        wanted = sum(array.nbytes for array in self._data.values())
        free, _ = torch.cuda.mem_get_info(self.device)
        return bool(wanted <= RESIDENT_SHARE * free)


def _to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copies by blocks, so that a memory map larger than the host's memory passes through."""
    tensor = torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype, device=device)
    step = max(1, COPY_BLOCK // (array[0].nbytes or 1))
    for first in range(0, len(array), step):
        tensor[first : first + step] = torch.from_numpy(array[first : first + step].copy())
    return tensor
