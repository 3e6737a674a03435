"""Generator and critic pairs, by architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ganfast.errors import InvalidValue, near
from ganfast.models import cnn, dcgan, mlp, resnet
from ganfast.models.critic import FeatureCritic
from ganfast.models.shape import SampleShape

Pair = tuple[nn.Module, FeatureCritic]


def _mlp(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    if norm != "none":
        raise InvalidValue(
            f"the mlp critic has no normalisation, got norm {norm!r}; use norm 'none' or a convolutional architecture"
        )
    depth = 2 if shape.size else 3  # points are learned from few features: one more layer stands in for the missing pixels
    pair = mlp.Generator(shape, latent_dim, width, depth), mlp.Critic(shape, width, depth)
    for network in pair:
        mlp.initialise(network)
    return pair


def _dcgan(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    pair = dcgan.Generator(shape, latent_dim, width), dcgan.Critic(shape, width, norm=norm)
    for network in pair:
        dcgan.initialise(network)
    return pair


def _cnn(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    if norm != "none":
        raise InvalidValue(f"the cnn critic has no normalisation, got norm {norm!r}; use norm 'none' or architecture 'dcgan'")
    pair = cnn.Generator(shape, latent_dim, width), cnn.Critic(shape, width)
    for network in pair:
        dcgan.initialise(network)
    return pair


def _resnet(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    pair = resnet.Generator(shape, latent_dim, width), resnet.Critic(shape, width, norm=norm)
    for network in pair:
        resnet.initialise(network)
    return pair


ARCHITECTURES: dict[str, tuple[Callable[[SampleShape, int, int, str], Pair], int]] = {
    "mlp": (_mlp, 256),
    "dcgan": (_dcgan, 64),
    "cnn": (_cnn, 64),
    "resnet": (_resnet, 128),
}


def usual_width(architecture: str) -> int:
    """The width that 0 stands for."""
    return ARCHITECTURES[architecture][1]


def pair(architecture: str, shape: SampleShape, *, latent_dim: int, width: int = 0, norm: str = "none") -> Pair:
    """Generator and critic of an architecture in :data:`ARCHITECTURES`, initialised as their papers do.

    Width 0 is its usual width.
    """
    if architecture not in ARCHITECTURES:
        raise InvalidValue(f"no architecture is called {architecture!r}{near(architecture, ARCHITECTURES)}")
    if not shape.size and architecture != "mlp":
        raise InvalidValue(f"architecture {architecture!r} makes images; points need 'mlp'")
    for name, value, least in (("latent_dim", latent_dim, 1), ("width", width, 0)):
        if value < least:
            raise InvalidValue(f"expected {name} of at least {least}, got {value}")
    build, usual_width = ARCHITECTURES[architecture]
    return build(shape, latent_dim, width or usual_width, norm)
