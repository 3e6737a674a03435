r"""One layer of k-means features of images (Coates, Ng and Lee 2011, "An Analysis of Single-Layer Networks", sections 3 and 4).

Patches of w x w pixels are normalised, (p - mean) / sqrt(var + 10), and whitened by ZCA, V (L + 0.1)^(-1/2) V^T for their
covariance V L V^T; k-means++ and Lloyd's iterations find K centroids of a random sample of them. At every position of an image
the "triangle" activation is

    f_k = max(0, mean_j z_j - z_k),    z_k = the distance of the whitened patch to centroid k,

which is averaged over the four quadrants of the image: 4 K features. No label is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, unfold

PATCH = 6  # pixels a side, the best of those in the paper
_CONTRAST = 10.0  # added to the variance of a patch of 0 .. 255
_WHITENING = 0.1  # added to the eigenvalues
_PATCHES = 50_000  # that a dictionary is learned from
_ITERATIONS = 10  # of Lloyd's
_CHUNK = 4096  # points at a time, whose distances to all centroids are held
_VALUES = 1 << 23  # activations at a time


@dataclass(frozen=True)
class Dictionary:
    """The side of a patch in pixels, the patches' mean (P,), the whitening (P, P) and the centroids (K, P)."""

    patch: int
    mean: Tensor
    whitening: Tensor
    centroids: Tensor

    def to(self, device: torch.device) -> Dictionary:
        return Dictionary(self.patch, *(tensor.to(device) for tensor in (self.mean, self.whitening, self.centroids)))

    def features(self, images: Tensor) -> Tensor:
        """Features (N, 4 K) of images (N, C, H, W) in [0, 255]."""
        positions = (images.shape[2] - self.patch + 1) * (images.shape[3] - self.patch + 1)
        return torch.cat([self._pooled(some) for some in images.split(max(1, _VALUES // (positions * len(self.centroids))))])

    def _pooled(self, images: Tensor) -> Tensor:
        patches = normalised(unfold(images, self.patch).transpose(1, 2).flatten(0, 1))
        z = distances((patches - self.mean) @ self.whitening, self.centroids)
        triangle = z.mean(dim=1, keepdim=True).sub(z).clamp_(min=0)
        shape = len(images), images.shape[2] - self.patch + 1, images.shape[3] - self.patch + 1, len(self.centroids)
        return adaptive_avg_pool2d(triangle.view(shape).permute(0, 3, 1, 2), 2).flatten(1)


def learn(images: NDArray[np.uint8], rows: Tensor, centroids: int, generator: torch.Generator) -> Dictionary:
    """The dictionary of random patches from the given rows of images (N, H, W, C), on the CPU.

    It has fewer centroids where there are fewer distinct patches.
    """
    _, height, width, _ = images.shape
    side = min(PATCH, height, width)
    which = rows[torch.randint(len(rows), (_PATCHES,), generator=generator)]
    top = torch.randint(height - side + 1, (_PATCHES,), generator=generator)
    left = torch.randint(width - side + 1, (_PATCHES,), generator=generator)
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))  # (N, y, x, C, side, side)
    patches = normalised(torch.from_numpy(windows[which.numpy(), top.numpy(), left.numpy()]).flatten(1).float())
    mean = patches.mean(dim=0)
    centred = (patches - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    whitening = (vectors * (values.clamp(min=0) + _WHITENING).rsqrt()) @ vectors.T
    return Dictionary(side, mean, whitening.float(), clustered((centred @ whitening).float(), centroids, generator))


def clustered(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` centroids (K, P) of points (N, P): k-means++ (Arthur and Vassilvitskii 2007), then Lloyd's iterations.

    A cluster that loses all its points keeps its centroid. There are fewer where there are fewer distinct points.
    """
    centroids = spread(points, count, generator)
    for _ in range(_ITERATIONS):
        sums, counts = torch.zeros(centroids.shape, dtype=torch.float64), torch.zeros(len(centroids), 1)
        for chunk in points.split(_CHUNK):
            nearest = distances(chunk, centroids).argmin(dim=1)
            sums.index_add_(0, nearest, chunk.double())
            counts += nearest.bincount(minlength=len(centroids)).unsqueeze(1)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids).float()
    return centroids


def spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centroid is a point drawn with a probability proportional to its squared distance to the nearest."""
    chosen = [points[int(torch.randint(len(points), (1,), generator=generator))]]
    nearest = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for draw in torch.rand(count - 1, generator=generator, dtype=torch.float64).tolist():
        # from differences, not by a product of matrices: a point must have no distance to itself
        apart = torch.cdist(points, chosen[-1][None], compute_mode="donot_use_mm_for_euclid_dist").squeeze(1)
        nearest = torch.minimum(nearest, apart.double().square())
        reach = nearest.cumsum(dim=0)
        if reach[-1] == 0:
            break
        chosen.append(points[int(torch.searchsorted(reach, draw * reach[-1], right=True))])
    return torch.stack(chosen)


def distances(points: Tensor, centroids: Tensor) -> Tensor:
    """|p - c| (N, K), by a product of matrices."""
    squares = torch.addmm(centroids.square().sum(dim=1), points, centroids.T, alpha=-2)
    return squares.add_(points.square().sum(dim=1, keepdim=True)).clamp_(min=0).sqrt_()


def normalised(patches: Tensor) -> Tensor:
    """Patches (N, P) of pixels in [0, 255] without their brightness and contrast."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + _CONTRAST).sqrt()
