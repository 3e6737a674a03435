"""Count, mean and scatter of rows, kept as sums about a shift (:mod:`ganfast.ops.covariance_update`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.ops.covariance_update import covariance_update


@dataclass
class Moments:
    """Of ``count`` rows x (D,): ``sums`` (D,) of x - shift, and the upper triangle of ``products`` (D, D) of these; float64."""

    count: int
    shift: Tensor
    sums: Tensor
    products: Tensor

    @classmethod
    def of_none(cls, shift: Tensor) -> Moments:
        return cls(0, shift, torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift)))

    def add(self, rows: Tensor) -> None:
        """Add rows (N, D)."""
        covariance_update(rows, self.shift, self.sums, self.products)
        self.count += len(rows)

    def copy(self) -> Moments:
        return Moments(self.count, self.shift, self.sums.clone(), self.products.clone())

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.shift + self.sums / self.count

    @property
    def scatter(self) -> Tensor:
        """The sum of (x - mean) (x - mean)^T (D, D), both triangles."""
        upper = (self.products - torch.outer(self.sums, self.sums / self.count)).triu()
        return upper + upper.triu(1).T

    def about(self, shift: Tensor) -> Moments:
        """Those of the same rows about another shift, on its device."""
        if self.count == 0:
            return Moments.of_none(shift)
        distance = self.mean.to(shift.device) - shift
        return Moments(
            self.count,
            shift,
            distance * self.count,
            self.scatter.to(shift.device) + torch.outer(distance, distance * self.count),
        )

    def merged(self, other: Moments) -> Moments:
        """Those of both sets of rows (Chan, Golub and LeVeque 1983, equation 2.1), about the mean of all."""
        count = self.count + other.count
        mean, other_mean = self.mean, other.mean.to(self.shift.device)
        middle = mean + (other_mean - mean) * (other.count / count)
        one, two = self.about(middle), other.about(middle)
        return Moments(count, middle, one.sums + two.sums, one.products + two.products)
