"""Features of all processes in each of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, distributed

from ganfast.errors import InvalidValue
from ganfast.metrics.gather import all_gather_features
from ganfast.metrics.kernel_distance import kernel_distance

REAL, FAKE = ((90, 0), (20, 2)), ((70, 1), (60, 3))  # what each process has: how many, seed


def features(count: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def refusal(*arguments: object) -> str:
    try:
        all_gather_features(*arguments)  # type: ignore[arg-type]
    except InvalidValue as error:
        return str(error)
    return ""


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    real, fake = (all_gather_features(features(*side[rank])) for side in (REAL, FAKE))
    first_alone = distributed.new_group([0])
    found = {
        "real": real,
        "distance": kernel_distance(real, fake, subsets=5, subset_size=30),
        "one empty": all_gather_features(features(5 * rank, 4)),
        "all empty": all_gather_features(features(0, 4)),
        "types": all_gather_features(features(3, rank).to(torch.bfloat16 if rank else torch.float32)),
        "widths": refusal(features(3, 0, width=4 + rank)),
        "nan": refusal(features(3, 0) * (torch.nan if rank else 1)),
        "group": refusal(features(3, 0), first_alone),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.barrier()  # a rank that left first would end the others with their connections
    distributed.destroy_process_group()


def test_every_process_gets_the_rows_of_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (str(tmp_path),), nprocs=2)
    real, fake = (torch.cat([features(*mine) for mine in side]) for side in (REAL, FAKE))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["real"], real)
        assert found["distance"] == kernel_distance(real, fake, subsets=5, subset_size=30)
        assert torch.equal(found["one empty"], features(5, 4))
        assert found["all empty"].shape == (0, 6)
        expected = torch.cat([features(3, 0), features(3, 1).bfloat16().float()])
        assert torch.equal(found["types"], expected.double())
        assert found["widths"] == "expected as many features in every process, got 4, 5"
        assert found["nan"] == "process 1: features holds 18 values that are NaN or Inf, of 18"
        assert found["group"] == ["", "this process is not in the group whose features it asks for"][rank]
