"""Several batches by one call of a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ganfast.errors import InvalidValue
from ganfast.nn import fuse, in_one_batch


@pytest.mark.parametrize("fused", [False, True])
def test_batch_norms_keep_each_batchs_statistics(fused: bool) -> None:
    layers = nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(54, 1)
    apart = nn.Sequential(*layers).double()
    together = copy.deepcopy(apart)
    if fused:
        fuse(together)
    real, fake = torch.randn(4, 3, 6, 6).double(), 3 + 2 * torch.randn(4, 3, 6, 6).double()
    wanted = apart(real), apart(fake)
    found = in_one_batch(together, (real,), (fake,))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # roundings of float64
    (wanted[0].mean() - wanted[1].square().mean()).backward()
    (found[0].mean() - found[1].square().mean()).backward()
    for one, other in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)
    for one, other in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_several_inputs_of_each() -> None:
    table = nn.Bilinear(2, 3, 1).double()
    batches = [(torch.randn(4, 2).double(), torch.randn(4, 3).double()) for _ in range(3)]
    for found, batch in zip(in_one_batch(table, *batches), batches, strict=True):
        torch.testing.assert_close(found, table(*batch), rtol=1e-12, atol=1e-12)


def test_batches_of_several_sizes_are_refused() -> None:
    with pytest.raises(InvalidValue, match="one size, got 3, 5"):
        in_one_batch(nn.Linear(2, 1), (torch.randn(3, 2),), (torch.randn(5, 2),))


def test_a_compiled_network_sees_the_groups_come_and_go() -> None:
    network = fuse(nn.Sequential(nn.Conv2d(3, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(54, 1)))
    plain = copy.deepcopy(network)
    compiled = torch.compile(network, backend="aot_eager")
    for _ in range(3):
        real, fake = torch.randn(4, 3, 6, 6), 2 + torch.randn(4, 3, 6, 6)
        for one, other in zip(in_one_batch(compiled, (real,), (fake,)), (plain(real), plain(fake)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # float32 through five layers
        torch.testing.assert_close(compiled(fake), plain(fake), rtol=1e-4, atol=1e-5)
