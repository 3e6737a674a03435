"""A network that turns images into features, and classes if it knows some: where every score of images starts.

A score is named after its network: only the published weights of 2015 make "FID", the number that papers compare.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganfast._version import __version__
from ganfast.errors import InvalidType, InvalidValue
from ganfast.metrics.arrays import tensor

Images = NDArray[np.uint8] | Tensor

_PIXELS = 1 << 22  # of the images that are handled at a time, however large they are: 50 MB of colours in float32
_GPU = 8  # times as many images as on a CPU
_NAMES = {  # of a score with the published weights of 2015, and with other ones
    "fid": ("FID", "FD"),
    "fid-infinity": ("FID-infinity", "FD-infinity"),
    "kid": ("KID", "KD"),
    "is": ("IS", "IS"),
}


class Outputs(NamedTuple):
    """What a network says of n images: features (n, D), and logits (n, K) where it classifies; float32."""

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network with what belongs to it: how images become its input, where its weights come from, what its scores are called.

    ``compute`` gives the outputs of uint8 images (n, H, W, 1 or 3) on ``device``. On a CPU it gets ``chunk`` of them, as many as
    its caches like; on a GPU eight times as many. ``facts`` is what a manifest tells of the network; ``published`` is whether
    these are the weights of 2015.
    """

    name: str
    compute: Callable[[Tensor], Outputs]
    device: torch.device
    chunk: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False
    width: int | None = None  # D, where it is known beforehand

    @torch.no_grad()
    def __call__(self, images: Images, side: str = "images") -> Outputs:
        """Outputs of uint8 images (n, H, W, 1 or 3), n >= 1, array, memory map or tensor; on the network's device.

        In float32 throughout, without TF32. Raises InvalidType and InvalidValue that call the images ``side``.
        """
        check_images(images, side)
        many = self.chunk * (1 if self.device.type == "cpu" else _GPU)
        step = max(1, min(many, _PIXELS // (images.shape[1] * images.shape[2])))
        # each chunk is copied from an array: torch warns of read-only ones, and a data set's memory map is read piece by piece
        chunks = (tensor(images[start : start + step], side) for start in range(0, len(images), step))
        with torch.autocast(self.device.type, enabled=False), whole_float32():
            parts = [self.compute(chunk.to(self.device).contiguous()) for chunk in chunks]
        logits = [part.logits for part in parts if part.logits is not None]
        return Outputs(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)

    def manifest(self) -> dict[str, Any]:
        """What has to be told beside a score so that somebody else gets the same one; fit for JSON."""
        return {
            "network": self.name,
            **self.facts,
            "published": self.published,
            "versions": {"ganfast": __version__, "torch": torch.__version__, "numpy": np.__version__},
        }

    def score_name(self, metric: str) -> str:
        """What a metric ("fid", "kid", "is", ...) of this network is called: "FID", or "FD[its name]" with any other weights."""
        ours, other = _NAMES.get(metric, ("", metric))
        return ours if ours and self.published else f"{other}[{self.name}]"


def check_images(images: Images, side: str) -> None:
    """Raises InvalidType and InvalidValue, which call the images ``side``, unless they are uint8 (n, H, W, 1 or 3), n >= 1."""
    if not isinstance(images, np.ndarray | Tensor) or images.dtype not in (torch.uint8, np.uint8):
        raise InvalidType(f"expected {side} in uint8, got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise InvalidValue(f"expected {side} (n, H, W, 1 or 3) with n >= 1, got {tuple(images.shape)}")


@contextmanager
def whole_float32() -> Iterator[None]:
    """Convolutions and products of float32 keep all of its digits meanwhile, whatever faster ones are allowed otherwise."""
    libraries: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    with ExitStack() as stack:
        for setting in (getattr(library, kind) for library in libraries for kind in ("conv", "matmul") if hasattr(library, kind)):
            stack.callback(setattr, setting, "fp32_precision", setting.fp32_precision)
            setting.fp32_precision = "ieee"
        yield


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and values."""
    whole = hashlib.sha256()
    for name, values in sorted(weights.items()):
        whole.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        whole.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
