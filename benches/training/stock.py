"""The three loops in plain PyTorch, in every mode: what ganfast's engine is held against.

Written as a careful user would who wants it fast. One forward pass of the generator for a critic step, without a graph; the
critic frozen in the generator's step; fused Adam, moving averages by one foreach call, images from uint8 in memory; nothing waits
for the device. The gradient penalty is double backward. Spectral norm is PyTorch's parametrization, moved once in a critic step:
its weights serve both passes, and in the generator's step the critic is in evaluation mode.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parametrize

from ganfast.benches.ops.gradient_penalty import double_backward
from ganfast.benches.training.networks import pair
from ganfast.recipe import Recipe

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Mode:
    """One way of running stock PyTorch; ``one_batch`` judges real and generated samples in one pass of the critic."""

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: str = ""  # torch.compile's mode, none at all where empty
    one_batch: bool = False

    def __str__(self) -> str:
        compiled = {"": "", "default": " compiled", "reduce-overhead": " reduce-overhead"}[self.compiled]
        layout = " channels-last" if self.channels_last else ""
        return f"torch{compiled}{layout}{' one-batch' if self.one_batch else ''} {str(self.dtype).removeprefix('torch.')}"


def modes(recipe: str, device: torch.device) -> Iterator[Mode]:
    """Every mode, those first that are likely the fastest. Batch norm in dcgan's critic needs its two passes."""
    compiled = ("reduce-overhead", "default", "") if device.type == "cuda" else ("default", "")
    for dtype, channels_last in itertools.product((torch.bfloat16, torch.float32), (True, False)):
        for way, one_batch in itertools.product(compiled, (False,) if recipe == "dcgan" else (True, False)):
            yield Mode(dtype, channels_last, way, one_batch)


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "dcgan": (lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(), lambda fake: F.softplus(-fake).mean()),
    "wgan-gp": (lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    "sngan": (lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
}


class Loop:
    """Trains copies of ``recipe``'s networks on ``images``, uint8 (N, S, S, C), half of them mirrored.

    Latents, optimizers and averages are as ``recipe`` says. The gradient penalty is eager in all modes (:func:`refusal`); what
    is compiled is each other part as a whole: the generator's pass, the critic's with its loss, both with the generator's loss.
    """

    def __init__(
        self, recipe: Recipe, images: NDArray[Any], *, batch: int, critic_steps: int, mode: Mode, device: torch.device
    ) -> None:
        self.mode, self.batch, self.critic_steps, self.device = mode, batch, critic_steps, device
        self.penalised, self.normalised = recipe.name == "wgan-gp", recipe.name == "sngan"
        self.latent: Any = recipe.latent
        self.losses = LOSSES[recipe.name]
        layout: Any = torch.channels_last if mode.channels_last else torch.contiguous_format
        self.G, self.D = (network.to(device, memory_format=layout) for network in pair(recipe))
        self.average = copy.deepcopy(self.G).requires_grad_(False)
        self.decay, self.steps = recipe.ema["G"], 0
        self.adams = [
            torch.optim.Adam(network.parameters(), fused=True, **recipe.optimizers[name].settings)
            for network, name in ((self.G, "G"), (self.D, "D"))
        ]
        pixels = torch.from_numpy(images.copy()).to(device)
        self.images = pixels if mode.channels_last else pixels.permute(0, 3, 1, 2).contiguous()
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.generate, self.judge, self.fool = self._generate, self._judge, self._fool
        if mode.compiled:
            compile: Any = torch.compile(dynamic=False, mode=mode.compiled)
            self.generate, self.judge, self.fool = map(compile, (self._generate, self._judge, self._fool))
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True

    # ---- one iteration

    def step(self) -> Losses:
        losses = {}
        for _ in range(self.critic_steps):
            losses |= self.critic(self.reals(), self.noise())
        return losses | self.generator(self.noise())

    def critic(self, real: Tensor, z: Tensor) -> Losses:
        self.begin()
        self.D.train().requires_grad_(True)
        self.adams[1].zero_grad()
        with self.autocast():
            fake = self.generate(z)
            losses = {"critic/adversarial": self.judge(real, fake)}
            if self.penalised:
                losses["critic/penalty"] = self.penalty(real, fake)
        sum(losses.values(), torch.zeros((), device=self.device)).backward()
        self.adams[1].step()
        return {name: loss.detach() for name, loss in losses.items()}

    def generator(self, z: Tensor) -> Losses:
        self.begin()
        self.D.eval() if self.normalised else None
        self.D.requires_grad_(False)
        self.adams[0].zero_grad()
        with self.autocast():
            loss = self.fool(z)
        loss.backward()
        self.adams[0].step()
        self.follow()
        return {"generator/adversarial": loss.detach()}

    @torch.no_grad()
    def _generate(self, z: Tensor) -> Tensor:
        return self.G(z).float()

    def _judge(self, real: Tensor, fake: Tensor) -> Tensor:
        with self.normalised_once():
            if self.mode.one_batch:
                scores = self.D(torch.cat([real, fake])).float()
                return self.losses[0](*scores.chunk(2))
            return self.losses[0](self.D(real).float(), self.D(fake).float())

    def _fool(self, z: Tensor) -> Tensor:
        return self.losses[1](self.D(self.G(z)).float())

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        return double_backward(self.D, real, fake, alpha=torch.rand(len(real), device=self.device))

    @torch.no_grad()
    def follow(self) -> None:
        """The generator's moving average, held down early; running statistics are averaged as weights are."""
        pull = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        both: list[list[Tensor]] = [
            [*network.parameters(), *(b for b in network.buffers() if b.is_floating_point())]
            for network in (self.average, self.G)
        ]
        torch._foreach_lerp_(*both, pull)
        self.steps += 1

    # ---- what it draws

    def reals(self) -> Tensor:
        """The next images (batch, C, S, S) in [-1, 1], in a new order each epoch."""
        if self.position + self.batch > len(self.order):
            self.order, self.position = torch.randperm(len(self.images), device=self.device), 0
        rows = self.order[self.position : self.position + self.batch]
        self.position += self.batch
        mirrored = torch.rand(self.batch, 1, 1, 1, device=self.device) < 0.5
        pixels = self.images.index_select(0, rows)
        pixels = torch.where(mirrored, pixels.flip(2 if self.mode.channels_last else 3), pixels)
        real = pixels.float().div_(127.5).sub_(1)
        return real.permute(0, 3, 1, 2) if self.mode.channels_last else real

    def noise(self) -> Tensor:
        shape = self.batch, self.latent.dim
        if self.latent.uniform:
            return torch.rand(shape, device=self.device).mul_(2).sub_(1)
        return torch.randn(shape, device=self.device)

    # ---- how

    def begin(self) -> None:
        """What captured graphs returned before may be overwritten."""
        if self.mode.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.mode.dtype == torch.bfloat16)

    def normalised_once(self) -> contextlib.AbstractContextManager[Any]:
        """Spectral norm once for the passes inside; one pass needs no cache, which compilers cannot follow."""
        shared = self.normalised and not self.mode.one_batch
        return parametrize.cached() if shared else contextlib.nullcontext()


def refusal(loop: Loop) -> str:
    """What torch.compile says to the gradient penalty of ``loop``, nothing where it takes it."""
    critic = copy.copy(loop)
    critic.D = torch.compile(loop.D, dynamic=False)
    real = loop.reals()
    try:
        with loop.autocast():
            critic.penalty(real, real.flip(0)).backward()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return ""
