"""Two processes that share a batch are one process that has all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ganfast.nn import spectral_norm_, update_spectral_norm

WORLD = 2


def critic(seed: int, per_call: bool) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(144, 1))
    return spectral_norm_(layers, per_call=per_call)


def trained(module: nn.Module, critic: nn.Module, images: Tensor, per_call: bool) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):
        if not per_call:
            update_spectral_norm(critic)
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()
    return critic.state_dict()


def batch() -> Tensor:
    return torch.randn(2 * WORLD, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def one_rank(rank: int, folder: str, per_call: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    network = critic(rank, per_call)  # other weights and vectors on every rank: the first one's must win
    result = trained(DistributedDataParallel(network), network, batch().chunk(WORLD)[rank], per_call)
    torch.save(result, f"{folder}/{rank}.pt")
    distributed.barrier()  # a rank that leaves earlier may end the other one's connections while those begin
    distributed.destroy_process_group()


@pytest.mark.parametrize("per_call", [False, True])
def test_data_parallel_training_is_training_on_the_whole_batch(per_call: bool, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path), per_call), nprocs=WORLD)
    alone = critic(0, per_call)
    expected = trained(alone, alone, batch(), per_call)
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)  # float32 means in another order, three steps
