"""What is benched: a recipe at a size, a batch, and so many critic steps before each generator step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganfast import Trainer, recipes
from ganfast.benches.training.stock import Loop, Mode
from ganfast.engine.randomness import seeded
from ganfast.recipe import Recipe

# at the widths of their papers; sngan's generator is twice as wide as its critic
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "dcgan": {"image_size": 64, "width": 64},
    "wgan-gp": {"image_size": 32, "width": 128, "architecture": "resnet"},
    "sngan": {"image_size": 32, "width": 128, "architecture": "resnet"},
}
IMAGES = 2048
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Work:
    name: str
    batch: int
    critic_steps: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)  # the recipe's

    @staticmethod
    def of(name: str, batch: int, critic_steps: int = 1) -> Work:
        return Work(name, batch, critic_steps, RECIPES[name])

    def __str__(self) -> str:
        steps = f"{self.critic_steps} critic step{'s' * (self.critic_steps > 1)}"
        return f"{self.name}-{self.options['image_size']} batch {self.batch}, {steps}"

    def recipe(self) -> Recipe:
        """Always with the same weights."""
        with seeded(torch.device("cpu"), 0):
            return recipes.get(self.name, **{**self.options, "critic_steps": self.critic_steps})

    def images(self) -> NDArray[np.uint8]:
        """uint8 (N, S, S, 3): noise on fields of colour, so that there is something to learn at several scales."""
        size, drawn = self.options["image_size"], np.random.default_rng(0)
        fields = drawn.integers(0, 192, (IMAGES, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
        return (fields + drawn.integers(0, 64, (IMAGES, size, size, 3))).astype(np.uint8)

    def ours(self, dtype: torch.dtype, device: torch.device, recipe: Recipe | None = None) -> Trainer:
        """ganfast's engine on it, with ``recipe`` in place of its own."""
        settings = {"batch": self.batch, "precision": PRECISIONS[dtype], "device": str(device), "flip": True}
        return Trainer(recipe or self.recipe(), self.images(), **settings)

    def stock(self, mode: Mode, device: torch.device) -> Loop:
        recipe = self.recipe()
        return Loop(recipe, self.images(), batch=self.batch, critic_steps=self.critic_steps, mode=mode, device=device)
