"""Where a generator's inputs come from: noise, noise with labels, noise with codes to be recovered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ganfast.errors import InvalidValue


@dataclass(frozen=True)
class Noise:
    """``z`` (N, dim), standard normal or uniform on [-1, 1]."""

    dim: int
    uniform: bool = False
    columns: int = 0

    def sample(
        self, n: int, device: torch.device, *, truncation: float | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        _refuse_labels(labels)
        return {"z": _uniform(n, self.dim, device, truncation) if self.uniform else _normal(n, self.dim, device, truncation)}

    def grid(self, n: int, device: torch.device) -> dict[str, Tensor]:
        return self.sample(n, device)


@dataclass(frozen=True)
class LabelledNoise:
    """``z`` (N, dim) with labels ``y`` (N,) drawn evenly.

    In the grid a row of pictures shares its noise and runs through the classes.
    """

    dim: int
    classes: int

    @property
    def columns(self) -> int:
        return self.classes

    def sample(
        self, n: int, device: torch.device, *, truncation: float | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        z = _normal(n, self.dim, device, truncation)
        if labels is None:
            return {"z": z, "y": torch.randint(self.classes, (n,), device=device)}
        y = torch.as_tensor(labels)
        if y.is_floating_point() or y.dim() > 1 or y.numel() not in (1, n):
            raise InvalidValue(f"expected labels as one integer or {n} integers, got {y.dtype} of shape {tuple(y.shape)}")
        if y.min() < 0 or y.max() >= self.classes:
            raise InvalidValue(f"expected labels from 0 to {self.classes - 1}, got {int(y.min())} to {int(y.max())}")
        return {"z": z, "y": y.to(device, torch.long).expand(n)}

    def grid(self, n: int, device: torch.device) -> dict[str, Tensor]:
        order = torch.arange(n, device=device)
        z = _normal(-(-n // self.classes), self.dim, device)
        return {"z": z[order // self.classes], "y": order % self.classes}


@dataclass(frozen=True)
class Codes:
    """InfoGAN's input ``z`` (N, noise + categories + continuous).

    Incompressible noise, a one-hot code, uniform codes on [-1, 1].
    """

    noise: int
    categories: int
    continuous: int

    @property
    def dim(self) -> int:
        return self.noise + self.categories + self.continuous

    @property
    def columns(self) -> int:
        return self.categories

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The categorical code (N,) as class indices and the continuous codes (N, continuous) within ``z``."""
        onehot = z[:, self.noise : self.noise + self.categories]
        return onehot.argmax(1), z[:, self.noise + self.categories :]

    def sample(
        self, n: int, device: torch.device, *, truncation: float | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        _refuse_labels(labels)
        return self._join(
            _normal(n, self.noise, device, truncation),
            torch.randint(self.categories, (n,), device=device),
            _uniform(n, self.continuous, device),
        )

    def grid(self, n: int, device: torch.device) -> dict[str, Tensor]:
        """The category changes along a row; down the rows the first continuous code runs from -1 to 1.

        The noise is one for all.
        """
        order = torch.arange(n, device=device)
        continuous = torch.zeros(n, self.continuous, device=device)
        if self.continuous:
            rows = -(-n // self.categories)
            continuous[:, 0] = torch.linspace(-1, 1, rows, device=device)[order // self.categories]
        return self._join(_normal(1, self.noise, device).expand(n, -1), order % self.categories, continuous)

    def _join(self, noise: Tensor, category: Tensor, continuous: Tensor) -> dict[str, Tensor]:
        return {"z": torch.cat([noise, one_hot(category, self.categories, noise.dtype), continuous], 1)}


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """(N, classes) of labels (N,), without a look at their values, which torch's own takes on a CPU."""
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(dtype)


def _normal(n: int, dim: int, device: torch.device, truncation: float | None = None) -> Tensor:
    z = torch.randn(n, dim, device=device)
    if truncation is None:
        return z
    _check_truncation(truncation)
    # Drawing values anew until they fall inside (Brock et al. 2019, section 3.1) is the normal distribution cut off at the
    # threshold.
    return torch.nn.init.trunc_normal_(z, a=-truncation, b=truncation)


def _uniform(n: int, dim: int, device: torch.device, truncation: float | None = None) -> Tensor:
    limit = 1.0
    if truncation is not None:
        _check_truncation(truncation)
        limit = min(1.0, truncation)
    return torch.rand(n, dim, device=device).mul_(2).sub_(1).mul_(limit)


def _check_truncation(truncation: float) -> None:
    if not truncation > 0:
        raise InvalidValue(f"expected truncation above 0, got {truncation}")


def _refuse_labels(labels: Tensor | None) -> None:
    if labels is not None:
        raise InvalidValue("this recipe's generator takes no labels; a label-conditional one (cgan) does")
