"""Image-to-image networks of CycleGAN: a residual generator and a patch critic (Zhu et al. 2017, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganfast.errors import InvalidValue
from ganfast.nn.conv import Conv2d, ConvTranspose2d


class ResidualBlock(nn.Module):
    """conv-IN-ReLU-conv-IN added to its input, reflection padded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """Images (N, C, S, S) -> images of the other domain, same shape, in [-1, 1]; S divisible by 4.

    A 7x7 convolution, two strided ones, ``blocks`` residual blocks at a quarter of the size (six for 128 pixels, nine for 256
    in the paper) and two transposed ones back.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2d(channels, width, 7, padding=3, padding_mode="reflect"),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            Conv2d(width, 2 * width, 3, 2, 1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(),
            Conv2d(2 * width, 4 * width, 3, 2, 1),
            nn.InstanceNorm2d(4 * width),
            nn.ReLU(),
            *(ResidualBlock(4 * width) for _ in range(blocks)),
            ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(2 * width),
            nn.ReLU(),
            ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            Conv2d(width, channels, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PatchCritic(nn.Module):
    """Images -> one score per overlapping patch (N, 1, h, w).

    Three halvings make the paper's 70 x 70 patches, fewer suit small images.
    """

    def __init__(self, channels: int, width: int, halvings: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        units = width
        for i in range(1, halvings + 1):
            inputs, units = units, width * min(8, 2**i)
            stride = 2 if i < halvings else 1
            layers += [Conv2d(inputs, units, 4, stride, 1), nn.InstanceNorm2d(units), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, Conv2d(units, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ImagePool(nn.Module):
    """A history of generated images for the critic (Shrivastava et al. 2017, section 2.3), in buffers: saved and resumed.

    Once full, each image passed in is, with probability one half, exchanged for a stored one.
    """

    images: Tensor
    filled: Tensor

    def __init__(self, capacity: int, dims: tuple[int, ...]) -> None:
        super().__init__()
        if capacity < 1:
            raise InvalidValue(f"an image pool holds at least one image, got {capacity}")
        self.capacity = capacity
        self.register_buffer("images", torch.zeros(capacity + 1, *dims))  # the last row is scratch, for images that are not kept
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, fresh: Tensor) -> Tensor:
        """Images (N, C, S, S) to show the critic. Slots are chosen on the device, so nothing waits for it."""
        n = len(fresh)
        free = self.filled + torch.arange(n, device=fresh.device)
        # Distinct, so that no two images of a batch meet in one slot; numbers past the capacity take no part.
        stored = torch.randperm(max(n, self.capacity), device=fresh.device)[:n]
        exchange = (self.filled >= self.capacity) & (stored < self.capacity) & (torch.rand(n, device=fresh.device) < 0.5)
        scratch = torch.full_like(stored, self.capacity)
        slot = torch.where(free < self.capacity, free, torch.where(exchange, stored, scratch))
        shown = torch.where(exchange.view(-1, 1, 1, 1), self.images[slot], fresh)
        self.images[slot] = fresh.to(self.images.dtype)
        self.filled.copy_((self.filled + n).clamp(max=self.capacity))
        return shown
