"""Mean and covariance of more features than fit into memory, which is all that a Frechet distance needs of a set of images.

    statistics = FeatureStatistics()
    for images in batches:
        statistics.update(network(images))
    statistics.save("fake.npz")
    distance = FeatureStatistics.load("real.npz").frechet_distance(statistics)

Everything is summed in float64, in blocks of a fixed number of rows into which batches are gathered: the same rows give the same
bits, in whatever batches they come.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from ganfast.errors import InvalidData, InvalidType, InvalidValue, NotFound
from ganfast.files import write_atomically
from ganfast.metrics.arrays import Array, as_floats, check_numbers, tensor
from ganfast.metrics.frechet import Gaussian, distance_between, gaussian
from ganfast.metrics.moments import Moments

BLOCK = 1024  # rows that are summed at a time: 8 MB of 2048 float32 features


class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of a stream of features, float64, with their count.

    D, and the device that everything is kept on, are those of the first features.
    """

    def __init__(self) -> None:
        self._moments: Moments | None = None  # of all full blocks
        self._waiting: list[Tensor] = []  # the rows of the block that is not full
        self._held = 0  # how many those are
        self._given: tuple[Tensor, Tensor] | None = None  # mean and covariance that came without a count

    def update(self, features: Array) -> None:
        """Add features (N, D), of any type of real numbers, N >= 0.

        Raises InvalidType, and adds nothing: no real numbers. Raises InvalidValue, and adds nothing: not two-dimensional, another
        D than before, NaN or Inf, numbers too large to square.
        """
        rows = tensor(features, "the batch")
        if rows.dim() != 2 or rows.shape[1] == 0:
            raise InvalidValue(f"expected features (N, D), got {tuple(rows.shape)}")
        if self._given:
            raise InvalidValue("these statistics came without their count: nothing can be added to them")
        if self.width not in (0, rows.shape[1]):
            raise InvalidValue(f"expected features (N, {self.width}) as before, got {tuple(rows.shape)}")
        rows = as_floats(rows)
        check_numbers(rows, "the batch")
        self.__dict__.pop("gaussian", None)
        while len(rows):
            head = rows[: BLOCK - self._held]
            rows = rows[len(head) :]
            # a copy, where it waits for more: its owner may write something else there meanwhile
            self._waiting.append(head.clone() if len(rows) == 0 else head)
            self._held += len(head)
            if self._held == BLOCK:
                self._moments, self._waiting, self._held = self._summed(), [], 0

    def _summed(self) -> Moments | None:
        """Everything, what waits included."""
        if not self._waiting:
            return self._moments
        device = self._moments.shift.device if self._moments else self._waiting[0].device
        dtypes = {rows.dtype for rows in self._waiting}
        wide = dtypes.pop() if len(dtypes) == 1 else torch.float64
        rows = torch.cat([rows.to(device, wide) for rows in self._waiting])
        moments = self._moments or Moments.of_none(rows.double().mean(dim=0))
        # a block must not end where somebody happens to look, so what waits is added to a copy
        moments = moments if len(rows) == BLOCK else moments.copy()
        moments.add(rows)
        return moments

    @property
    def width(self) -> int:
        """D; 0 before the first features."""
        if self._given:
            return len(self._given[0])
        return len(self._moments.shift) if self._moments else self._waiting[0].shape[1] if self._waiting else 0

    @property
    def count(self) -> int | None:
        """How many features there were; None where a file did not tell."""
        return None if self._given else (self._moments.count if self._moments else 0) + self._held

    @property
    def mean(self) -> Tensor:
        """(D,), float64. Raises InvalidValue before the first features."""
        return self._given[0] if self._given else self._of(1, "mean").mean

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by count - 1, float64. Raises InvalidValue with fewer than two features."""
        if self._given:
            return self._given[1]
        moments = self._of(2, "covariance")
        return moments.scatter / (moments.count - 1)

    def _of(self, least: int, what: str) -> Moments:
        moments = self._summed()
        if moments is None or moments.count < least:
            raise InvalidValue(f"a {what} needs at least {('one sample', 'two samples')[least - 1]}, got {self.count}")
        return moments

    # ---- the distance

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """What a distance needs of this side, factor included: computed once, until the next update."""
        return gaussian(self.mean, self.covariance, "")

    def frechet_distance(self, other: FeatureStatistics) -> float:
        """Squared distance, see :func:`ganfast.metrics.frechet_distance`. A side is factored once, however often it is asked."""
        one, another = "these statistics", "the other ones"
        return float(distance_between(self._named(one), other._named(another), one, another))

    def _named(self, name: str) -> Gaussian:
        try:
            return self.gaussian
        except InvalidValue as error:
            raise InvalidValue(f"{name}: {error}") from None

    # ---- several of them

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Those of both sets of features; neither side changes. Raises InvalidValue: D differs, or a count is not known."""
        sides = [side._countable()._summed() for side in (self, other)]
        there = [moments for moments in sides if moments]
        merged = FeatureStatistics()
        if len(there) == 2:
            if self.width != other.width:
                raise InvalidValue(f"expected as many features on both sides, got {self.width} and {other.width}")
            merged._moments = there[0].merged(there[1])
        elif there:
            merged._moments = there[0].copy()
        return merged

    def all_reduce(self, group: Any = None) -> FeatureStatistics:
        """Those of the features of all processes of a torch.distributed group. Every process calls it, and gets the same.

        Raises InvalidValue, in every process, where D differs, or a count is not known; and in a process outside of the group.
        """
        if torch.distributed.get_rank(group) < 0:
            raise InvalidValue("this process is not in the group whose statistics it asks for")
        facts: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(facts, (self.count, self.width), group=group)
        counts, widths = [count for count, _ in facts], {width for count, width in facts if count != 0}
        if None in counts:
            raise InvalidValue(_NO_COUNT)
        if len(widths) > 1:
            raise InvalidValue(f"expected as many features in every process, got {', '.join(map(str, sorted(widths)))}")
        reduced = FeatureStatistics()
        if not widths:
            return reduced
        gpu = torch.distributed.get_backend(group) == "nccl"
        mine = self._summed()
        middle = torch.zeros(widths.pop(), dtype=torch.float64, device="cuda" if gpu else "cpu")
        mine = mine.about(mine.mean.to(middle.device)) if mine else Moments.of_none(middle)
        middle += mine.shift * (mine.count / sum(counts))
        torch.distributed.all_reduce(middle, group=group)
        moved = mine.about(middle)
        for sums in (moved.sums, moved.products):
            torch.distributed.all_reduce(sums, group=group)
        reduced._moments = Moments(sum(counts), middle, moved.sums, moved.products)
        return reduced

    def _countable(self) -> FeatureStatistics:
        if self._given:
            raise InvalidValue(_NO_COUNT)
        return self

    # ---- files

    def save(self, path: Path | str) -> None:
        """Write an npz with ``mu`` and ``sigma``, as pytorch-fid and clean-fid do, and ``count`` where it is known. Atomically.

        Raises InvalidValue with fewer than two features, or where ``path`` names no file; NotWritable.
        """
        arrays = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        if self.count is not None:
            arrays["count"] = np.array(self.count)
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        try:
            write_atomically(Path(path), file.getvalue())
        except ValueError as error:
            raise InvalidValue(f"expected the path of a file, got {str(path)!r}: {error}") from None

    @classmethod
    def load(cls, path: Path | str) -> FeatureStatistics:
        """Read what :meth:`save`, pytorch-fid or clean-fid wrote. Without a count they take no more features, and do not merge.

        Statistics in float32 become a covariance without what rounding made of its zero eigenvalues.

        Raises NotFound, InvalidData: no npz, no ``mu`` and ``sigma``, no real numbers, shapes that do not fit, NaN or Inf, a
        negative eigenvalue, a count that is no whole number from 2 on.
        """
        path = Path(path)
        if not path.exists():
            raise NotFound(f"{path} does not exist")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                mu, sigma = (_native(arrays[name]) for name in ("mu", "sigma"))
                count = arrays.get("count")
        except Exception as error:  # a damaged one fails as archives, decompressors, parsers and memory do
            raise InvalidData(f"{path} cannot be read as statistics, an npz of mu and sigma: {error}") from None
        loaded = cls()
        try:
            checked = gaussian(mu, sigma, "")
        except (InvalidValue, InvalidType) as error:
            raise InvalidData(f"{path}: {error}") from None
        covariance = checked.factor @ checked.factor.T if sigma.dtype == np.float32 else torch.from_numpy(sigma)
        if count is None:
            loaded._given = checked.mean, covariance
        else:
            samples = _whole(count, path)
            loaded._moments = Moments(samples, checked.mean, torch.zeros_like(checked.mean), covariance * (samples - 1))
        loaded.__dict__["gaussian"] = checked
        return loaded


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """In this machine's byte order."""
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def _whole(count: NDArray[Any], path: Path) -> int:
    if count.shape or count.dtype.kind not in "iuf" or not 2 <= count < 2**63 or count != np.floor(count):
        raise InvalidData(
            f"{path}: expected a whole count, for a covariance needs at least two samples, and the count is {count}"
        )
    return int(count)


_NO_COUNT = "statistics that came without their count cannot be merged: their share of the whole is not known"
