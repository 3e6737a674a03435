"""Generator and critic pairs, by architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ganfast.errors import InvalidValue, near
from ganfast.models import cnn, dcgan, mlp, resnet
from ganfast.models.critic import FeatureCritic
from ganfast.models.shape import SampleShape

Pair = tuple[nn.Module, FeatureCritic]


@dataclass(frozen=True)
class Architecture:
    build: Callable[[SampleShape, int, int, str], Pair]  # shape, latent_dim, width, norm -> a pair not yet initialised
    initialise: Callable[[nn.Module], None]
    width: int  # what 0 stands for
    norms: bool = True  # whether the critic can be normalised


def _mlp(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    depth = 2 if shape.size else 3  # points are learned from few features: one more layer stands in for the missing pixels
    return mlp.Generator(shape, latent_dim, width, depth), mlp.Critic(shape, width, depth)


def _dcgan(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    return dcgan.Generator(shape, latent_dim, width), dcgan.Critic(shape, width, norm=norm)


def _cnn(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    return cnn.Generator(shape, latent_dim, width), cnn.Critic(shape, width)


def _resnet(shape: SampleShape, latent_dim: int, width: int, norm: str) -> Pair:
    return resnet.Generator(shape, latent_dim, width), resnet.Critic(shape, width, norm=norm)


ARCHITECTURES = {
    "mlp": Architecture(_mlp, mlp.initialise, 256, norms=False),
    "dcgan": Architecture(_dcgan, dcgan.initialise, 64),
    "cnn": Architecture(_cnn, dcgan.initialise, 64, norms=False),
    "resnet": Architecture(_resnet, resnet.initialise, 128),
}


def usual_width(architecture: str) -> int:
    """The width that 0 stands for."""
    return ARCHITECTURES[architecture].width


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
    chosen = ARCHITECTURES[architecture]
    if norm != "none" and not chosen.norms:
        raise InvalidValue(
            f"the {architecture} critic has no normalisation, got norm {norm!r}; use norm 'none' or architecture 'dcgan'"
        )
    networks = chosen.build(shape, latent_dim, width or chosen.width, norm)
    for network in networks:
        chosen.initialise(network)
    return networks
