"""Features of all processes in each: what metrics need that are no sum over samples, such as distances between pairs of these."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ganfast.errors import InvalidValue
from ganfast.metrics.arrays import Array
from ganfast.metrics.rows import rows


def all_gather_features(features: Array, group: Any = None) -> Tensor:
    """The rows (N, D) of all processes of a torch.distributed group, rank by rank; N >= 0 may differ among them.

    Every process calls it, and gets the same, on the device of its own features. Where their types differ they become float64.

    Raises InvalidValue, in every process, where D differs, or features of one hold NaN or Inf; and in a process outside of the
    group.
    """
    if torch.distributed.get_rank(group) < 0:
        raise InvalidValue("this process is not in the group whose features it asks for")
    mine, refused = None, ""
    try:
        mine = rows(features, "features", least=0)
    except (InvalidValue, TypeError) as error:
        refused = str(error)
    facts: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(facts, (refused, None if mine is None else (len(mine), mine.shape[1], mine.dtype)), group)
    wrong = [f"process {rank}: {why}" for rank, (why, _) in enumerate(facts) if why]
    if wrong or mine is None:
        raise InvalidValue("; ".join(wrong))
    counts, widths, dtypes = zip(*(shape for _, shape in facts), strict=True)
    if len(set(widths)) > 1:
        raise InvalidValue(f"expected as many features in every process, got {', '.join(map(str, sorted(set(widths))))}")
    dtype = dtypes[0] if len(set(dtypes)) == 1 else torch.float64
    gpu = torch.distributed.get_backend(group) == "nccl"
    padded = torch.zeros(max(counts), widths[0], dtype=dtype, device="cuda" if gpu else "cpu")
    padded[: len(mine)] = mine
    received = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(received, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)]).to(mine.device)
