from __future__ import annotations

import gather_images_suite
import pytest
import torch
from torch.library import opcheck

from ganfast.ops.gather_images import gather_images


@pytest.mark.parametrize("case", gather_images_suite.suite("reference"))
def test_gather_images(case: str) -> None:
    gather_images_suite.suite("reference")[case]()


@pytest.mark.parametrize("channels_last", [True, False])
def test_opcheck(channels_last: bool) -> None:
    data = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8)
    opcheck(gather_images.overload, (data, torch.tensor([4, 0]), torch.tensor([True, False]), channels_last))
