"""What a sample is, and the sizes that convolutional networks can make of it."""

from __future__ import annotations

from dataclasses import dataclass

from ganfast.errors import InvalidValue


@dataclass(frozen=True)
class SampleShape:
    """Square images (channels, size, size), or points (channels,) where size is 0."""

    channels: int
    size: int

    def __post_init__(self) -> None:
        if self.channels < 1 or self.size < 0:
            raise InvalidValue(
                f"expected at least one channel and a size that is not negative, got {self.channels} and {self.size}"
            )

    @property
    def dims(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size) if self.size else (self.channels,)

    @property
    def numel(self) -> int:
        return self.channels * self.size * self.size if self.size else self.channels

    def doublings(self) -> tuple[int, int]:
        """``(base, k)`` with ``size = base * 2**k`` and base from 4 to 7: the smallest map and how often it doubles."""
        if not self.size:
            raise InvalidValue(
                "points have no pixels, which convolutional networks need: use a recipe whose networks can be an mlp, such as gan"
            )
        base, k = self.size, 0
        while base > 7 and base % 2 == 0:
            base, k = base // 2, k + 1
        if not 4 <= base <= 7 or k == 0:
            fits = sorted(b << j for b in range(4, 8) for j in range(1, 9))
            below = max((s for s in fits if s <= self.size), default=fits[0])
            above = min((s for s in fits if s >= self.size), default=fits[-1])
            hint = " or ".join(str(s) for s in dict.fromkeys([below, above]))
            raise InvalidValue(
                f"image size {self.size} cannot be halved down to a map of 4 to 7 pixels, as these networks do; "
                f"the nearest that can: {hint}"
            )
        return base, k
