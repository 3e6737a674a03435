"""Random weights for the Inception of 2015, whose published ones no test can count on: what is proven is the code around them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ganfast.metrics.inception import Inception2015


def write_inception(path: Path, seed: int = 0) -> Path:
    """A state dict like the published one. Activations stay near one through all layers, as with trained weights."""
    draw = torch.Generator().manual_seed(seed)
    network = Inception2015()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draw)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.7, 1.3, generator=draw)
                module.running_var.uniform_(0.7, 1.5, generator=draw)
                for values in (module.bias, module.running_mean):
                    values.normal_(0, 0.2, generator=draw)
        nn.init.normal_(network.fc.weight, std=0.02, generator=draw)
        nn.init.normal_(network.fc.bias, generator=draw)
    torch.save(network.state_dict(), path)
    return path
