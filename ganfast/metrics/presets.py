"""How the field's tools turn images into the Inception's input, by name. A FID compares with those of the same preset alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ganfast.errors import InvalidValue, near
from ganfast.metrics import resize

SIZE = 299


@dataclass(frozen=True)
class Preset:
    """A resize to 299 x 299, and the scale (x - middle) / half that takes 0..255 to about -1..1."""

    name: str
    resize: Callable[[Tensor, int], Tensor]
    middle: float
    half: float

    def input(self, images: Tensor) -> Tensor:
        """(n, 3, 299, 299) of uint8 images (n, H, W, 1 or 3); a grey one becomes three equal channels."""
        pixels = self.resize(images.permute(0, 3, 1, 2), SIZE)
        return ((pixels - self.middle) / self.half).expand(-1, 3, -1, -1)

    @property
    def scale(self) -> str:
        return f"(x - {self.middle:g}) / {self.half:g}"


PRESETS = {
    preset.name: preset
    for preset in (
        # torch-fidelity, StyleGAN's metrics, and the TensorFlow graph of the FID paper
        Preset("tf-compat", resize.tensorflow_bilinear, 128, 128),
        Preset("pytorch-fid", resize.bilinear, 127.5, 127.5),
        # clean-fid, whose own copy of the network is a TorchScript file: the same weights
        Preset("clean", resize.bicubic_antialiased, 128, 128),
        Preset("torchmetrics", resize.bilinear_antialiased, 128, 128),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of this name; raises InvalidValue."""
    if name not in PRESETS:
        raise InvalidValue(f"no preset is called {name!r}{near(name, PRESETS)}")
    return PRESETS[name]
