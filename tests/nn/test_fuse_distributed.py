"""A fused network in DistributedDataParallel is what the plain one is there."""

from __future__ import annotations

from pathlib import Path

import torch
from fused_twins import assert_close
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ganfast.nn import fuse

WORLD, STEPS = 2, 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 1)).double()


def trained(module: nn.Module) -> list[Tensor]:
    parallel = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    own = torch.Generator().manual_seed(distributed.get_rank())
    for _ in range(STEPS):
        optimizer.zero_grad()
        parallel(torch.randn(4, 1, 8, 8, generator=own, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    return list(module.state_dict().values())


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    torch.save([trained(network()), trained(fuse(network()))], f"{folder}/{rank}.pt")
    distributed.barrier()  # a rank that left first would end the others with their connections
    distributed.destroy_process_group()


def test_fused_ranks_train_as_plain_ones_do(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=WORLD)
    for rank in range(WORLD):
        plain, fused = torch.load(tmp_path / f"{rank}.pt")
        assert_close(fused, plain)
        assert not torch.equal(plain[0], network()[0].weight)
