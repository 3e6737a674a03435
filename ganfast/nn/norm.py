"""Normalisation layers of a convolutional critic, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ganfast.errors import InvalidValue, near


def normalise(norm: str, channels: int) -> list[nn.Module]:
    """The layer called ``norm`` as a list to splice into a Sequential, empty for ``"none"``."""
    layers: dict[str, Callable[[], list[nn.Module]]] = {
        "batch": lambda: [nn.BatchNorm2d(channels)],
        # one group: a sample's channels and positions together, scale and shift per channel (Gulrajani et al. 2017, section 4)
        "layer": lambda: [nn.GroupNorm(1, channels)],
        "none": list,
    }
    if norm not in layers:
        raise InvalidValue(f"no normalisation is called {norm!r}{near(norm, layers)}")
    return layers[norm]()
