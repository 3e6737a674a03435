"""What convolutions are tested with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A small map (N, A, h, h) and a big one (N, B, H, H), ``output_padding`` larger than the small one needs."""

    n: int
    a: int
    b: int
    h: int
    kernel: int
    stride: int
    padding: int
    output_padding: int = 0

    def __str__(self) -> str:
        more = f"+{self.output_padding}" if self.output_padding else ""
        return f"{self.n}x{self.a}x{self.b}-{self.h}px-k{self.kernel}s{self.stride}p{self.padding}{more}"

    @property
    def extents(self) -> tuple[int, int]:
        extent = (self.h - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
        return extent, extent

    def make(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """big, small, weight (A, B, kernel, kernel)."""
        shapes = ((self.n, self.b, *self.extents), (self.n, self.a, self.h, self.h), (self.a, self.b, self.kernel, self.kernel))
        big, small, weight = (torch.randn(shape).to(dtype) for shape in shapes)
        return big, small, weight


# DCGAN's layers and ResNet's; one pixel, a map as large as the kernel, few channels, channels around the width of a panel and
# pixels around the height of a tile, strides larger than the kernel, so that no tap reaches some pixels, more pixels than are
# summed at a time.
CASES = [
    Case(3, 10, 20, 5, 4, 2, 1),
    Case(2, 18, 36, 7, 3, 1, 1),
    Case(5, 16, 64, 1, 4, 1, 0),
    Case(2, 8, 3, 6, 4, 2, 1),
    Case(2, 6, 4, 5, 2, 3, 0, 1),
    Case(2, 6, 20, 5, 2, 3, 0, 1),
    Case(1, 2, 2, 3, 1, 1, 0),
    Case(2, 34, 6, 4, 4, 2, 1),
    Case(2, 70, 50, 3, 3, 2, 1, 1),
    Case(4, 64, 40, 4, 5, 2, 2, 1),
    Case(2, 8, 2, 6, 4, 2, 1),
    Case(2, 8, 1, 9, 4, 2, 1),
    Case(3, 7, 5, 6, 3, 1, 1),
    Case(3, 5, 21, 6, 4, 2, 1),
    Case(1, 32, 33, 1, 1, 1, 0),
    Case(14, 14, 32, 1, 3, 1, 1),
    Case(3, 128, 64, 8, 4, 2, 1),
    Case(9, 16, 16, 11, 4, 2, 1),
    Case(2, 12, 20, 6, 5, 1, 2),
    Case(2, 34, 18, 6, 3, 1, 1),
    Case(1, 2, 2, 2, 4, 2, 1),
    Case(1, 2, 2, 2, 3, 1, 1),
    Case(40, 16, 40, 2, 4, 2, 1),
    Case(40, 4, 4, 1, 4, 2, 1),
    # enough tiles of 4 x 4 pixels for Winograd's algorithm to take them, and channels that it sums up in two parts
    Case(7, 10, 148, 16, 4, 2, 1),
    Case(2, 8, 1024, 8, 4, 2, 1),  # in bfloat16 too, and a sum of 16,384 terms
    Case(25, 34, 6, 8, 4, 2, 1),
    # several blocks of rows for a map of few channels
    Case(3, 40, 3, 20, 4, 2, 1),
    Case(26, 18, 10, 8, 3, 1, 1),
]

_BIG, _SMALL, _WEIGHT = torch.ones(2, 4, 8, 8), torch.ones(2, 6, 4, 4), torch.ones(6, 4, 4, 4)
REFUSED = [
    ("convolve", (torch.ones(2, 5, 8, 8), _WEIGHT, None, 2, 1)),
    ("convolve", (torch.ones(2, 4, 1, 1), _WEIGHT, None, 2, 1)),
    ("convolve", (_BIG, _WEIGHT, torch.ones(5), 2, 1)),
    ("transposed_convolve", (_BIG, _WEIGHT, None, 2, 1, 8, 8)),
    ("transposed_convolve", (_SMALL, _WEIGHT, None, 2, 1, 12, 12)),
    ("transposed_convolve", (_SMALL, _WEIGHT, torch.ones(5), 2, 1, 8, 8)),
    ("weight", (_SMALL, torch.ones(3, 4, 8, 8), 4, 4, 2, 1)),
]
