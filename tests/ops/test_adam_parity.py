"""The C++ kernel of Adam on the CPU against the reference on its page."""

from __future__ import annotations

import adam_checks as checks
import pytest
import torch

from ganfast.ops.adam import adam_

pytestmark = pytest.mark.tier(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", checks.CHECKS)
def test_parity(name: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    checks.CHECKS[name](dtype, generator)


def test_other_strides_are_refused(generator: torch.Generator) -> None:
    checks.check_gaps_and_strides_are_refused(generator)


def test_the_number_of_threads_does_not_matter(generator: torch.Generator) -> None:
    net, found = checks.network(checks.LARGE, torch.float32, generator), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(net.like())
        checks.step(adam_, found[-1], checks.SETTINGS[0])
    torch.set_num_threads(1)
    one, two = ([t for tensors in each.lists() for t in tensors] for each in found)
    assert all(map(torch.equal, one, two))
