"""Feature networks by name, and any module of one's own.

    features = network("inception-2015", preset="tf-compat")(images).features

``inception-2015`` needs the published weights (a path, the cache, or one download), ``efficientnet-lite0`` a package that carries
them, and ``fashion-cnn`` nothing.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ganfast.errors import InvalidType, InvalidValue, near
from ganfast.metrics import efficientnet, fashion, inception
from ganfast.metrics.feature_network import FeatureNetwork, Outputs, digest
from ganfast.metrics.presets import PRESETS

__all__ = ["INCEPTION", "NAMES", "PRESETS", "FeatureNetwork", "Outputs", "network"]

INCEPTION = inception.NAME
NAMES = (INCEPTION, efficientnet.NAME, fashion.NAME)
_CHUNK = 32  # of a module: not known what it would like


def network(
    which: str | nn.Module,
    *,
    preset: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
) -> FeatureNetwork:
    """A network that turns uint8 images (n, H, W, 1 or 3) into features, by name, or made of a module.

    ``preset``, of the Inception alone, is "tf-compat" (default), "pytorch-fid", "clean" or "torchmetrics". ``weights`` is the
    path of a state dict to take in place of the published one; scores are then named after its hash.

    ``device`` is "cpu" unless given, for a module where it lies; on another device a copy of it computes.

    A module takes float images (n, C, H, W) in [0, 1] and gives features (n, D), or a pair of these and logits (n, K). It has to
    be in evaluation mode.

    Raises InvalidType, InvalidValue: no such name or preset, an argument that does not apply, a module in training mode. Raises
    NotFound where published weights are not on this machine and cannot be fetched, Damaged where they are not what they should
    be, Unavailable where their package is missing; each says what to do.
    """
    path = None if weights is None else Path(weights)
    if isinstance(which, nn.Module):
        _refuse("a module of your own", preset=preset, weights=path)
        return _of_module(which, device)
    if not isinstance(which, str):
        raise InvalidType(f"expected the name of a network or a torch.nn.Module, got {type(which).__name__}")
    where = torch.device(device or "cpu")
    if which == INCEPTION:
        return inception.feature_network(where, preset or inception.PRESET, path)
    if which == efficientnet.NAME:
        _refuse(which, preset=preset)
        return efficientnet.feature_network(where, path)
    if which == fashion.NAME:
        _refuse(which, preset=preset, weights=path)
        return fashion.feature_network(where)
    raise InvalidValue(f"no feature network is called {which!r}{near(which, NAMES)}")


def _refuse(which: str, **arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise InvalidValue(f"{name}={str(value)!r} does not apply to {which}")


def _of_module(module: nn.Module, device: str | torch.device | None) -> FeatureNetwork:
    if any(part.training for part in module.modules()):
        raise InvalidValue("expected a module in evaluation mode, so that one image's features are its own: call .eval() first")
    tensors = module.state_dict()
    there = next((values.device for values in tensors.values()), torch.device("cpu"))
    where = torch.device(device or there)
    if where != there:
        module = copy.deepcopy(module).to(where)
    name = type(module).__name__

    def compute(images: Tensor) -> Outputs:
        given = module(images.permute(0, 3, 1, 2).float() / 255)
        features, logits = given if isinstance(given, tuple) else (given, None)
        for what, values in (("features", features), ("logits", logits)):
            if values is not None and (not isinstance(values, Tensor) or values.dim() != 2 or len(values) != len(images)):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise InvalidValue(f"expected {what} ({len(images)}, D) of {name}, got {got}")
        return Outputs(features.float(), None if logits is None else logits.float())

    facts = {"preset": None, "resize": None, "size": None, "scale": "x / 255", "weights": None, "weights_sha256": digest(tensors)}
    facts["module"] = repr(module)  # which weights alone do not tell
    return FeatureNetwork(name, compute, where, _CHUNK, facts)
