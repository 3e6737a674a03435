"""Critics of any architecture, drawn by hypothesis: what a user might write, layer by layer, for (N, 3, 8, 8) images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from ganfast.nn import spectral_norm_

SIZE, CHANNELS = 8, 3

PIECEWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu in place": lambda x: F.relu_(x * 1),
    "relu6": F.relu6,
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "hardtanh": F.hardtanh,
    "threshold": lambda x: F.threshold(x, 0.1, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.3 * x),
    "maximum": lambda x: torch.maximum(x, -0.5 * x),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll(1, 2),
    "there and back": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2).reshape(x.shape),
    "halves": lambda x: torch.cat(x.chunk(2, dim=2)[::-1], dim=2),
    "affine": lambda x: 1.5 - x / 3 + 2 * x,
    "dropout": lambda x: F.dropout(x, 0.3),
    "stack": lambda x: torch.stack([x, x * 0.5]).sum(0),
    "repeat": lambda x: x.repeat(1, 2, 1, 1)[:, : x.shape[1]],
    "masked": lambda x: x.masked_fill(x < -0.4, 0.2),
    "mean of it": lambda x: x - x.mean((2, 3), keepdim=True),
}
SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "gate": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "square": lambda x: 0.3 * x * x,
    "ratio": lambda x: x / (1 + x.abs().mean((2, 3), keepdim=True)),
    "length": lambda x: x / (1 + x.square().sum(1, keepdim=True)).sqrt(),
    "softmax": lambda x: x.softmax(1),
    "bend": lambda x: (x.abs() + 0.1).pow(1.3),
}


class Function(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(channels, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift + self.scale * x


class Branches(nn.Module):
    """A sum or a concatenation of what two paths make of the same data."""

    def __init__(self, first: nn.Module, second: nn.Module, concatenate: bool) -> None:
        super().__init__()
        self.first, self.second, self.concatenate = first, second, concatenate

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x), self.second(x)
        return torch.cat(parts, dim=1) if self.concatenate else parts[0] + parts[1]


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        return x + self.gain * (value @ (query.mT @ key).softmax(-1)).view(x.shape)


@st.composite
def layers(draw: st.DrawFn, channels: int, curved: bool, depth: int) -> tuple[nn.Module, int]:
    """A layer that keeps the size of its maps, and its number of channels."""
    kinds = ["convolution", "transposed", "function", "scale", "pointwise", "same twice", "pool and up", "pixels", "padded"]
    if curved:
        kinds += ["smooth", "instance norm", "group norm", "layer norm", "attention", "prelu"]
    if depth:
        kinds += ["sum", "concatenation"]
    kind = draw(st.sampled_from(kinds))
    bias = draw(st.booleans())
    if kind == "convolution":
        out, groups = draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1
        dilation = draw(st.sampled_from([1, 2]))
        layer: nn.Module = nn.Conv2d(channels, out, 3, padding=dilation, dilation=dilation, groups=groups, bias=bias)
        return (spectral_norm_(layer) if draw(st.booleans()) else layer), out
    if kind == "transposed":
        out = draw(st.sampled_from([2, 4]))
        return nn.Sequential(nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=bias), nn.AvgPool2d(2)), out
    if kind == "pointwise":
        return nn.Conv2d(channels, 4, 1, bias=bias), 4
    if kind == "same twice":
        layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=bias), nn.LeakyReLU(0.1))
        return nn.Sequential(layer, layer), channels
    if kind == "scale":
        return Scale(channels), channels
    if kind == "pool and up":
        pool = draw(st.sampled_from([nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4), nn.AdaptiveMaxPool2d(4)]))
        mode = draw(st.sampled_from(["nearest", "bilinear", "nearest-exact"]))
        return nn.Sequential(pool, nn.Upsample(size=SIZE, mode=mode)), channels
    if kind == "pixels":
        return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, 8, 1, bias=bias), nn.PixelShuffle(2)), 2
    if kind == "padded":
        pad = draw(st.sampled_from([nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.3)]))
        return nn.Sequential(pad, nn.Conv2d(channels, 3, 3, bias=bias)), 3
    if kind == "smooth":
        return Function(SMOOTH[draw(st.sampled_from(sorted(SMOOTH)))]), channels
    if kind == "instance norm":
        return nn.InstanceNorm2d(channels, affine=bias), channels
    if kind == "group norm":
        return nn.GroupNorm(1, channels), channels
    if kind == "layer norm":
        return nn.LayerNorm([channels, SIZE, SIZE]), channels
    if kind == "attention":
        return Attention(channels), channels
    if kind == "prelu":
        return nn.PReLU(channels if bias else 1), channels
    if kind in ("sum", "concatenation"):
        first, out = draw(layers(channels, curved, depth - 1))
        second, other = draw(layers(channels, curved, depth - 1))
        if kind == "sum" and out != other:
            second = nn.Sequential(second, nn.Conv2d(other, out, 1))
        return Branches(first, second, kind == "concatenation"), out + other if kind == "concatenation" else out
    return Function(PIECEWISE[draw(st.sampled_from(sorted(PIECEWISE)))]), channels


@st.composite
def critics(draw: st.DrawFn, curved: bool) -> nn.Module:
    """In float64; some with frozen layers. ``curved`` ones may have smooth activations, normalisations and attention."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    parts, channels = [], CHANNELS
    for _ in range(draw(st.integers(1, 5))):
        layer, channels = draw(layers(channels, curved, depth=2))
        parts.append(layer)
    heads = {
        "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE**2, 6), nn.ReLU(), nn.Linear(6, 1)),
        "sum": lambda: Function(lambda x: x.sum((1, 2, 3))),
        "mean": lambda: nn.Sequential(Function(lambda x: x.mean((2, 3))), nn.Linear(channels, 1, bias=False)),
        "largest": lambda: nn.Sequential(Function(lambda x: x.amax((2, 3))), nn.Linear(channels, 1)),
        "patches": lambda: nn.Conv2d(channels, 1, 4, 2, 1),
        "flat": lambda: nn.Sequential(nn.Conv2d(channels, 1, SIZE), nn.Flatten(0)),
    }
    critic = nn.Sequential(*parts, heads[draw(st.sampled_from(sorted(heads)))]()).double()
    for parameter in critic.parameters():
        if draw(st.integers(0, 5)) == 0:
            parameter.requires_grad_(False)
    return critic
