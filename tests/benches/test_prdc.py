"""The providers of the bench of precision and recall, which the harness's own test leaves out."""

from __future__ import annotations

import pytest
import torch
from peers import torch_fidelity

from ganfast.benches.ops.prdc import K, all_distances, case


@pytest.mark.parametrize("width", [24, 600])
def test_every_provider_finds_the_same(width: int) -> None:
    small = case(300, width, torch.device("cpu"))
    stock = small.providers["all distances"]()
    for name, call in small.providers.items():
        found = call()
        assert {key: found[key] for key in stock} == pytest.approx(stock, abs=1e-7), name  # the stock's mean is in float32


def test_stock_is_torch_fidelitys() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(200, 8, generator=generator), torch.randn(150, 8, generator=generator)
    theirs = torch_fidelity.metric_prc.calculate_precision_recall_full(fake, real, K)
    assert tuple(all_distances(real, fake).values()) == theirs
