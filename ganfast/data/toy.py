"""Two-dimensional toy distributions whose modes are known, so that coverage can be counted.

ring8 and grid25 are the mixtures of Metz et al. 2017 (Unrolled GAN) and Srivastava et al. 2017 (VEEGAN); the Swiss roll is drawn
as in the toy experiments of Gulrajani et al. 2017 (WGAN-GP): t ~ U(1.5 pi, 4.5 pi), (t cos t, t sin t) + N(0, 0.25^2), over 7.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ganfast.errors import InvalidValue, near

ROWS = 100_000  # points in a ``toy:`` data set


@dataclass(frozen=True)
class Mixture:
    """Equally likely isotropic Gaussians around ``centres`` (K, 2)."""

    centres: NDArray[np.float64]
    sigma: float

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        modes = rng.integers(len(self.centres), size=n)
        points: NDArray[np.float64] = self.centres[modes] + self.sigma * rng.standard_normal((n, 2))
        return points


@dataclass(frozen=True)
class SwissRoll:
    """A spiral with isotropic noise, scaled down by ``scale``."""

    noise: float
    scale: float

    @property
    def sigma(self) -> float:
        return self.noise / self.scale

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        t = 1.5 * np.pi * (1 + 2 * rng.random(n))
        spiral = t[:, None] * np.stack([np.cos(t), np.sin(t)], axis=1)
        points: NDArray[np.float64] = (spiral + self.noise * rng.standard_normal((n, 2))) / self.scale
        return points


def _ring(modes: int, radius: float) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(modes) / modes
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _grid(side: int, step: float) -> NDArray[np.float64]:
    ticks = step * (np.arange(side) - (side - 1) / 2)
    return np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)


TOYS: Mapping[str, Mixture | SwissRoll] = {
    "ring8": Mixture(_ring(8, 2.0), 0.02),
    "grid25": Mixture(_grid(5, 2.0), 0.05),
    "swissroll": SwissRoll(noise=0.25, scale=7.5),
}


def _known(name: str) -> Mixture | SwissRoll:
    if name not in TOYS:
        raise InvalidValue(f"unknown toy distribution {name!r}{near(name, TOYS)}")
    return TOYS[name]


def toy(name: str, n: int, *, seed: int = 0) -> NDArray[np.float32]:
    """``n`` points of a toy distribution as float32 (n, 2), a pure function of its arguments.

    ``name`` is one of ``TOYS``. Raises :class:`~ganfast.errors.InvalidValue` for an unknown name, ``n`` or ``seed`` below 0.
    """
    source = _known(name)
    if n < 0 or seed < 0:
        raise InvalidValue(f"toy {name!r}: n and seed must be at least 0, got n={n}, seed={seed}")
    return source.draw(n, np.random.default_rng(seed)).astype(np.float32)


def modes(name: str) -> NDArray[np.float32]:
    """Centres (K, 2) of a toy mixture. Raises :class:`~ganfast.errors.InvalidValue` where there are none (swissroll)."""
    source = _known(name)
    if not isinstance(source, Mixture):
        mixtures = ", ".join(toy for toy, kind in TOYS.items() if isinstance(kind, Mixture))
        raise InvalidValue(f"toy {name!r} has no modes to count; those that have: {mixtures}")
    return source.centres.astype(np.float32)


def sigma(name: str) -> float:
    """Standard deviation, per coordinate, of the Gaussian noise around a mode or around the spiral."""
    return _known(name).sigma
