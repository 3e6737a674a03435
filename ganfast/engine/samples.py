"""Samples and pictures of a recipe's networks: what a run shows of itself. Nothing here changes the state of training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganfast.data import Dataset, Sampler
from ganfast.engine.randomness import seeded
from ganfast.errors import InvalidType, InvalidValue, whole
from ganfast.recipe import Named, Recipe, Terms

_SAMPLE, _PREVIEW, _PULL, _STREAM = 1 << 32, 1 << 33, 1 << 34, 1 << 35  # words that keep these draws apart from training's
CHUNK = 256  # samples generated at once


class Samples:
    """Draws from a recipe's networks, in evaluation mode and full precision, a bounded number at a time."""

    def __init__(self, recipe: Recipe, data: Dataset, sampler: Sampler, device: torch.device, seed: int) -> None:
        self.recipe, self.data, self.device, self.seed = recipe, data, device, seed
        self._sampler = sampler

    def draw(
        self, networks: Named, n: int, number: int, *, truncation: float | None, labels: Any, seed: int | None
    ) -> NDArray[Any]:
        """``n`` samples: the ones numbered from ``number`` on, or a ``seed``'s own. See :meth:`Trainer.sample`."""
        n = whole(n, "sample: n")
        if labels is not None:
            try:
                labels = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError):
                raise InvalidValue(f"sample: expected labels as one integer or {n} integers, got {labels!r}") from None
        with seeded(self.device, *((self.seed, _SAMPLE, number) if seed is None else (seed, _SAMPLE))):
            inputs = self._from_data(n, number if seed is None else 0)
            if self.recipe.latent is not None:
                inputs.update(self.recipe.latent.sample(n, self.device, truncation=truncation, labels=labels))
            elif truncation is not None or labels is not None:
                raise InvalidValue(
                    f"recipe {self.recipe.name!r} makes its samples from data: it takes no truncation and no labels"
                )
            return self.generate(networks, inputs)

    def stream(self, networks: Named, n: int, seed: int) -> Iterator[Tensor]:
        """``n`` samples of a seed, some at a time: uint8 (k, H, W, C), or float32 (k, 2) for points, on the device.

        The first of them are the same whatever ``n`` is: chunks are made whole, and what is too much of the last is left.
        """
        for number, start in enumerate(range(0, n, CHUNK)):
            with seeded(self.device, seed, _STREAM, number), torch.no_grad(), evaluating(networks):
                inputs = self._from_data(CHUNK, start)
                if self.recipe.latent is not None:
                    inputs.update(self.recipe.latent.sample(CHUNK, self.device))
                x = self.recipe.sample(networks, inputs)
            yield (pixels(x) if self.data.image_size else x.float())[: n - start]

    def generate(self, networks: Named, inputs: Named) -> NDArray[Any]:
        """What the networks make of ``inputs``: uint8 (n, H, W, C), or float32 (n, 2)."""
        return self._generate(lambda nets, chunk: {"samples": self.recipe.sample(nets, chunk)}, networks, inputs)["samples"]

    def preview(self, networks: Named, n: int) -> dict[str, NDArray[Any]]:
        """The same ``n`` inputs at any time in a run, as named columns of uint8 images (n, H, W, C) or of points (n, 2)."""
        with seeded(self.device, self.seed, _PREVIEW):
            inputs = self._from_data(n, 0)
            if self.recipe.latent is not None:
                inputs.update(self.recipe.latent.grid(n, self.device))
            columns: Callable[[Named, Named], Mapping[str, Tensor]] = self.recipe.preview or (
                lambda nets, chunk: {"samples": self.recipe.sample(nets, chunk)}
            )
            return self._generate(columns, networks, inputs)

    def score(self, networks: Named, x: NDArray[Any]) -> NDArray[Any]:
        """The critic's value (n,) at data points (n, ...). Raises InvalidValue for a recipe that has no ``score``."""
        if self.recipe.score is None:
            raise InvalidValue(f"recipe {self.recipe.name!r} has no score: expected one that says what its critic's value is")
        with torch.no_grad(), evaluating(networks):
            return self.recipe.score(networks, torch.as_tensor(x, device=self.device)).float().cpu().numpy()

    def pull(self, networks: Named, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Where the loss pulls samples: (samples (n, ...), minus the loss's gradient at each, times n).

        Found by running the last phase that updates a network which makes samples (one that has a moving average), watching
        its output.
        """
        phase = next(phase for phase in reversed(self.recipe.phases) if set(phase.updates) & set(self.recipe.ema))
        network = next(networks[name] for name in phase.updates if name in self.recipe.ema)
        caught: list[Tensor] = []

        def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            caught.append(output.detach().requires_grad_())
            return caught[-1]

        with seeded(self.device, self.seed, _PULL), evaluating(networks):
            batch = Named(self._sampler.batch(0, n, phase.reads)) if phase.reads else Named()
            if self.recipe.latent is not None:
                batch.update(self.recipe.latent.sample(n, self.device))
            hook = network.register_forward_hook(catch)
            try:
                total = Terms.of(phase.loss(networks, batch)).total()
            finally:
                hook.remove()
            gradients = torch.autograd.grad(total, caught, allow_unused=True)
        output, gradient = next(
            (output, gradient) for output, gradient in zip(caught, gradients, strict=True) if gradient is not None
        )
        return output.detach().float().cpu().numpy(), (-gradient * n).float().cpu().numpy()

    def _from_data(self, n: int, start: int) -> Named:
        reads = self.recipe.sample_reads
        return Named(self._sampler.batch(start, n, reads, salt=1)) if reads else Named()

    def _generate(
        self, columns: Callable[[Named, Named], Mapping[str, Tensor]], networks: Named, inputs: Named
    ) -> dict[str, NDArray[Any]]:
        n = len(next(iter(inputs.values())))
        parts: dict[str, list[NDArray[Any]]] = {}
        with torch.no_grad(), evaluating(networks):
            for start in range(0, n, CHUNK):
                chunk = Named({key: value[start : start + CHUNK] for key, value in inputs.items()})
                for name, x in columns(networks, chunk).items():
                    parts.setdefault(name, []).append(to_uint8(x) if self.data.image_size else x.float().cpu().numpy())
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Images (n, C, H, W) in [-1, 1] as uint8 (n, H, W, C), rounded to the nearest of 256 levels."""
    return pixels(images).cpu().numpy()


def pixels(images: Tensor) -> Tensor:
    """The same where the images are."""
    if images.dim() != 4:
        raise InvalidType(f"expected images (n, C, H, W), got shape {tuple(images.shape)}")
    return images.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


@contextlib.contextmanager
def evaluating(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Every network in evaluation mode inside, and as it was afterwards."""
    modes = {name: network.training for name, network in networks.items()}
    try:
        for network in networks.values():
            network.eval()
        yield
    finally:
        for name, network in networks.items():
            network.train(modes[name])
