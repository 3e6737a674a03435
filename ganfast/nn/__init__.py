"""Modules, and functions that change the modules of a network in place."""

from ganfast.nn.conv import Conv2d, ConvTranspose2d
from ganfast.nn.fuse import fuse, fuse_report
from ganfast.nn.groups import in_one_batch, statistics_groups
from ganfast.nn.spectral_norm import from_torch_state_dict, spectral_norm_, to_torch_state_dict, update_spectral_norm

__all__ = [
    "Conv2d",
    "ConvTranspose2d",
    "from_torch_state_dict",
    "fuse",
    "fuse_report",
    "in_one_batch",
    "spectral_norm_",
    "statistics_groups",
    "to_torch_state_dict",
    "update_spectral_norm",
]
