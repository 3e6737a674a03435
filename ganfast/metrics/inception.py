"""The Inception of 2015 whose features make FID (Szegedy et al. 2016; weights: TensorFlow's ``inception-2015-12-05.tgz``).

Its graph is not the paper's in three places, and scores compare only with these: average pools do not count their padding, the
last block pools by the maximum instead, and there are 1008 classes. Weights have the names of torchvision's ``Inception3``, as in
the files that pytorch-fid and torch-fidelity publish.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganfast.metrics.feature_network import FeatureNetwork, Outputs
from ganfast.metrics.presets import SIZE, preset_named
from ganfast.metrics.weight_files import INCEPTION_2015, fetched, fill, load

NAME = "inception-2015"
PRESET = "tf-compat"
TAPS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
CLASSES = 1008
_CHUNK = 8  # 14.3 images a second on two cores of an EPYC, 12.5 with 16 or 32

Kernel = int | tuple[int, int]
Step = tuple[int, Kernel] | tuple[int, Kernel, int]  # channels, kernel, stride if it is not 1
Branch = list[Step | list[Step]]

_average = partial(avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(max_pool2d, kernel_size=3, stride=1, padding=1)
_halving = partial(max_pool2d, kernel_size=3, stride=2)


class Convolution(nn.Module):
    """Convolution, batch norm with its running statistics, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Make batch norm a part of the convolution, whose outputs are then read once and not three times."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


class Mixed(nn.Module):
    """Branches side by side, their channels joined: chains of convolutions, then a pool, with a 1 x 1 behind it if ``pooled``.

    The convolutions of a chain are numbered, ``branch5x5_2``; where it forks the sides are told apart by letters,
    ``branch3x3_2a``. A step with a stride has no padding, the others keep the size.
    """

    def __init__(self, inputs: int, branches: Mapping[str, Branch], pool: Callable[[Tensor], Tensor], pooled: int = 0) -> None:
        super().__init__()
        self.chains: list[list[list[str]]] = []  # of each branch, of each step, the names of its sides
        for branch, steps in branches.items():
            width, chain = inputs, []
            for number, step in enumerate(steps, 1):
                name = f"branch{branch}_{number}" if len(steps) > 1 else f"branch{branch}"
                sides = [(name + "a", step[0]), (name + "b", step[1])] if isinstance(step, list) else [(name, step)]
                for side, (outputs, kernel, *stride) in sides:
                    self.add_module(side, Convolution(width, outputs, kernel, *(stride or (1, _half(kernel)))))
                width = sum(outputs for _, (outputs, *_) in sides)
                chain.append([side for side, _ in sides])
            self.chains.append(chain)
        self.pool = pool
        self.branch_pool = Convolution(inputs, pooled, 1) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for sides in chain:
                found = [getattr(self, side)(y) for side in sides]
                y = torch.cat(found, 1) if len(found) > 1 else found[0]
            outputs.append(y)
        return torch.cat([*outputs, self.branch_pool(self.pool(x))], 1)


def _half(kernel: Kernel) -> Kernel:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _block_a(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        {"1x1": [(64, 1)], "5x5": [(48, 1), (64, 5)], "3x3dbl": [(64, 1), (96, 3), (96, 3)]},
        _average,
        pooled,
    )


def _block_b(inputs: int) -> Mixed:
    return Mixed(inputs, {"3x3": [(384, 3, 2)], "3x3dbl": [(64, 1), (96, 3), (96, 3, 2)]}, _halving)


def _block_c(inputs: int, width: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    return Mixed(
        inputs,
        {
            "1x1": [(192, 1)],
            "7x7": [(width, 1), (width, row), (192, column)],
            "7x7dbl": [(width, 1), (width, column), (width, row), (width, column), (192, row)],
        },
        _average,
        192,
    )


def _block_d(inputs: int) -> Mixed:
    return Mixed(
        inputs,
        {"3x3": [(192, 1), (320, 3, 2)], "7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)]},
        _halving,
    )


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    fork: list[Step] = [(384, (1, 3)), (384, (3, 1))]
    return Mixed(inputs, {"1x1": [(320, 1)], "3x3": [(384, 1), fork], "3x3dbl": [(448, 1), (384, 3), fork]}, pool, 192)


class Inception2015(nn.Module):
    """Takes images (n, 3, 299, 299) in about [-1, 1]; gives what is asked for among ``TAPS``, float32.

    ``"64"``, ``"192"``, ``"768"`` and ``"2048"``: channels of four depths, each averaged over the picture, (n, 64) to (n, 2048).
    ``"logits"`` (n, 1008), and ``"logits_unbiased"``, without the bias, of which Salimans et al. 2016 made the Inception Score.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, 128)
        self.Mixed_6c = _block_c(768, 160)
        self.Mixed_6d = _block_c(768, 160)
        self.Mixed_6e = _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, _average)
        self.Mixed_7c = _block_e(2048, _maximum)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor, taps: Collection[str] = ("2048", "logits_unbiased")) -> dict[str, Tensor]:
        x = _halving(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images))))
        found = {"64": x}
        x = found["192"] = _halving(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a):
            x = block(x)
        for block in (self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e):
            x = block(x)
        found["768"] = x
        if not {*taps} <= {*found}:
            found["2048"] = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        found = {tap: channels.mean((2, 3)) for tap, channels in found.items()}
        if "2048" in found:
            found["logits_unbiased"] = found["2048"] @ self.fc.weight.T
            found["logits"] = found["logits_unbiased"] + self.fc.bias
        return {tap: found[tap] for tap in taps}

    def folded(self) -> Inception2015:
        """Itself in evaluation mode, every batch norm a part of its convolution, channels last: the same function, faster."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Convolution):
                module.fold()
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def feature_network(device: torch.device, preset: str = PRESET, weights: Path | None = None) -> FeatureNetwork:
    """The network with the published weights, or those of a file with a state dict of the same names; ``logits_unbiased``.

    Raises InvalidValue: no such preset. Raises NotFound, Damaged, InvalidData: see :mod:`ganfast.metrics.weight_files`.
    """
    prepare = preset_named(preset)
    file = load(fetched(INCEPTION_2015) if weights is None else weights)
    network = Inception2015()
    fill(network, file)
    network = network.folded().to(device)
    published = file.sha256 == INCEPTION_2015.sha256

    def compute(images: Tensor) -> Outputs:
        found = network(prepare.input(images).contiguous(memory_format=torch.channels_last))
        return Outputs(found["2048"], found["logits_unbiased"])

    return FeatureNetwork(
        name=NAME if published else f"{NAME}:{file.sha256[:8]}",
        compute=compute,
        device=device,
        chunk=_CHUNK,
        facts={"preset": preset, "resize": prepare.resize.__name__, "size": SIZE, "scale": prepare.scale, **file.facts},
        published=published,
        width=2048,
    )
