"""A penalised critic in DistributedDataParallel: two processes that share a batch are one that has all of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ganfast import gradient_penalty, r1_penalty

WORLD, STEPS = 2, 3


def critic(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.Softplus())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 1)).double()


def trained(module: nn.Module, critic: nn.Module, real: Tensor, fake: Tensor, alpha: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        penalty = gradient_penalty(module, real, fake, alpha=alpha) + r1_penalty(module, real, weight=0.3)
        (penalty + module(fake).mean() - module(real).mean()).backward()
        optimizer.step()
    return critic.state_dict()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(3)
    real, fake = (torch.randn(2 * WORLD, 1, 8, 8, generator=drawn, dtype=torch.float64) for _ in range(2))
    return real, fake, torch.rand(2 * WORLD, generator=drawn, dtype=torch.float64)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    network = critic(rank)  # other weights on every rank: the first one's must win
    module = DistributedDataParallel(network)
    reduced: list[int] = []

    def counted(state, bucket):  # type: ignore[no-untyped-def]  # the hook may not have annotations as text
        reduced.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    module.register_comm_hook(None, counted)
    result = trained(module, network, *(part.chunk(WORLD)[rank] for part in batch()))
    torch.save({"weights": result, "reduced": sum(reduced)}, f"{folder}/{rank}.pt")
    distributed.barrier()  # a rank that left first would end the others with their connections
    distributed.destroy_process_group()


def test_every_gradient_is_reduced_once_and_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=WORLD)
    alone = critic(0)
    expected = trained(alone, alone, *batch())
    parameters = sum(parameter.numel() for parameter in alone.parameters())
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["reduced"] == STEPS * parameters
        for name, value in expected.items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-10, atol=1e-12)
