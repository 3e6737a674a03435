"""A small Fashion-MNIST classifier, shipped with its weights: class counts, confidence and a Frechet distance without a download.

Its scores are called ``FD[fashion-cnn]``. They rank generators of Fashion-MNIST among each other and are no FID, whose features
come from another network. The weights are made by ``tools/train_fashion_cnn.py``; the card beside them says how good they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganfast.errors import Damaged, InvalidType, InvalidValue
from ganfast.metrics.frechet import distance_between, feature_statistics, fitted, gaussian, tensor

FRECHET_NAME = "FD[fashion-cnn]"
CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PRESENT_SHARE = 0.01  # a class counts as present when at least this share of the samples is assigned to it
_SIZE = 28
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 512  # images at a time: about 40 MB of activations

Images = NDArray[np.uint8] | Tensor
Statistics = tuple[Tensor, Tensor]


class FashionCNN(nn.Module):
    """Four 3 x 3 convolutions with batch norm, averaged over the picture to 128 features, and a linear layer to 10 classes.

    Takes grey images (n, 1, 28, 28) in [0, 1]; returns logits (n, 10). ``trunk`` gives the features (n, 128).
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *_block(1, 16),
            nn.MaxPool2d(2),
            *_block(16, 32),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits


def fashion_cnn() -> FashionCNN:
    """The classifier with the shipped weights, in evaluation mode. Raises Damaged if they fail their SHA-256."""
    from safetensors.torch import load

    folder = resources.files("ganfast.metrics") / "weights"
    weights = (folder / "fashion-cnn.safetensors").read_bytes()
    expected, got = card()["sha256"], hashlib.sha256(weights).hexdigest()
    if got != expected:
        raise Damaged(f"fashion-cnn.safetensors has SHA-256 {got}, expected {expected}: reinstall ganfast")
    network = FashionCNN()
    network.load_state_dict(load(weights))
    return network.eval()


def card() -> dict[str, Any]:
    """What is known of the shipped weights: test accuracy, how they were trained, SHA-256, licence."""
    folder = resources.files("ganfast.metrics") / "weights"
    contents: dict[str, Any] = json.loads((folder / "fashion-cnn.json").read_text())
    return contents


def features(images: Images) -> Tensor:
    """128 features of each image (n, H, W, 1 or 3) uint8, see :func:`prepared`; float32, on the images' device."""
    return _features(images, "images")


def _features(images: Images, side: str) -> Tensor:
    return _map(images, lambda network: network.trunk, side)


def logits(images: Images) -> Tensor:
    """Ten class logits of each image (n, H, W, 1 or 3) uint8, see :func:`prepared`; float32, on the images' device."""
    return _map(images, lambda network: network)


def fashion_report(images: Images) -> dict[str, Any]:
    """What a set of images looks like to the classifier.

    ``histogram``: images per class, by name. ``classes``: how many classes hold at least 1 % of the images. ``confidence``: mean
    probability of the class assigned, in [0.1, 1].
    """
    probability, assigned = logits(images).softmax(dim=1).max(dim=1)
    counts = assigned.bincount(minlength=len(CLASSES)).tolist()
    return {
        "histogram": dict(zip(CLASSES, counts, strict=True)),
        "classes": sum(count >= PRESENT_SHARE * len(assigned) for count in counts),
        "confidence": probability.mean().item(),
    }


def fashion_statistics(images: Images) -> Statistics:
    """Mean (128,) and covariance (128, 128) of the images' features, float64: the reference side of :func:`fashion_frechet`."""
    return feature_statistics(features(images), "images")


def fashion_frechet(fake: Images, real: Images | Statistics) -> float:
    """``FD[fashion-cnn]``: Frechet distance between generated images and real ones, or their :func:`fashion_statistics`."""
    made = fitted(_features(fake, "fake"), "fake")
    reference = gaussian(*real, " of real") if isinstance(real, tuple) else fitted(_features(real, "real"), "real")
    return float(distance_between(made, reference, "fake", "real"))


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


@functools.cache
def _classifier(device: torch.device) -> FashionCNN:
    return fashion_cnn().to(device)


@torch.no_grad()
def _map(images: Images, part: Callable[[FashionCNN], nn.Module], side: str = "images") -> Tensor:
    if images.dtype not in (torch.uint8, np.uint8):
        raise InvalidType(f"expected {side} in uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise InvalidValue(f"expected {side} (n, H, W, 1 or 3) with n >= 1, got {tuple(images.shape)}")
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    network = part(_classifier(device))
    # each chunk is copied from an array: torch warns of read-only ones, and a data set's memory map is read piece by piece
    chunks = (tensor(images[start : start + _CHUNK], side) for start in range(0, len(images), _CHUNK))
    with torch.autocast(device.type, enabled=False):
        return torch.cat([network(prepared(chunk)) for chunk in chunks])


def prepared(pixels: Tensor) -> Tensor:
    """Images (n, H, W, 1 or 3) uint8 as the network's input (n, 1, 28, 28) in [0, 1].

    Colour becomes luma (ITU-R BT.601, as Pillow's "L"). Any other size is resized by bicubic interpolation with antialiasing,
    which undoes an enlargement from 28 x 28 better than bilinear or area averages do: those blur a 32 x 32 picture.
    """
    images = pixels.permute(0, 3, 1, 2).float() / 255
    if images.shape[1] == 3:
        images = (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
    if images.shape[2:] != (_SIZE, _SIZE):
        images = interpolate(images, (_SIZE, _SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    return images
