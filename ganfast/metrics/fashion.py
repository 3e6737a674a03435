"""A small Fashion-MNIST classifier, shipped with its weights: class counts, confidence and a Frechet distance without a download.

Its scores are called ``FD[fashion-cnn]``. They rank generators of Fashion-MNIST among each other and are no FID, whose features
come from another network. The weights are made by ``tools/train_fashion_cnn.py``; the card beside them says how good they are.
"""

from __future__ import annotations

import functools
import hashlib
import json
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganfast.errors import Damaged
from ganfast.metrics.feature_network import FeatureNetwork, Images, Outputs
from ganfast.metrics.frechet import distance_between, feature_statistics, fitted, gaussian

NAME = "fashion-cnn"
FRECHET_NAME = f"FD[{NAME}]"
CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PRESENT_SHARE = 0.01  # a class counts as present when at least this share of the samples is assigned to it
_FILE = "fashion-cnn.safetensors"
_SIZE = 28
_LUMA = (0.299, 0.587, 0.114)
_CHUNK = 64  # twice as fast as 512 on two cores of an EPYC

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
    weights = (folder / _FILE).read_bytes()
    expected, got = card()["sha256"], hashlib.sha256(weights).hexdigest()
    if got != expected:
        raise Damaged(f"{_FILE} has SHA-256 {got}, expected {expected}: reinstall ganfast")
    network = FashionCNN()
    network.load_state_dict(load(weights))
    return network.eval()


def card() -> dict[str, Any]:
    """What is known of the shipped weights: test accuracy, how they were trained, SHA-256, licence."""
    folder = resources.files("ganfast.metrics") / "weights"
    contents: dict[str, Any] = json.loads((folder / "fashion-cnn.json").read_text())
    return contents


@functools.cache
def feature_network(device: torch.device) -> FeatureNetwork:
    """The classifier as a network of features, which takes any images: see :func:`prepared`."""
    classifier = fashion_cnn().to(device)

    def compute(images: Tensor) -> Outputs:
        found = classifier.trunk(prepared(images))
        return Outputs(found, classifier.head(found))

    return FeatureNetwork(
        name=NAME,
        compute=compute,
        device=device,
        chunk=_CHUNK,
        width=128,
        facts={
            "preset": None,
            "resize": "bicubic_antialiased",
            "size": _SIZE,
            "scale": "x / 255",
            "weights": _FILE,
            "weights_sha256": card()["sha256"],
        },
    )


def features(images: Images) -> Tensor:
    """128 features of each image (n, H, W, 1 or 3) uint8, see :func:`prepared`; float32, on the images' device."""
    return _outputs(images).features


def logits(images: Images) -> Tensor:
    """Ten class logits of each image (n, H, W, 1 or 3) uint8, see :func:`prepared`; float32, on the images' device."""
    found = _outputs(images).logits
    assert found is not None
    return found


def _outputs(images: Images, side: str = "images") -> Outputs:
    device = images.device if isinstance(images, Tensor) else torch.device("cpu")
    return feature_network(device)(images, side)


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
    made = fitted(_outputs(fake, "fake").features, "fake")
    reference = gaussian(*real, " of real") if isinstance(real, tuple) else fitted(_outputs(real, "real").features, "real")
    return float(distance_between(made, reference, "fake", "real"))


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


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
