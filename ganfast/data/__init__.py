"""Data: what to open, what it becomes, and how batches are drawn from it."""

from __future__ import annotations

from ganfast.data.dataset import Dataset
from ganfast.data.sampler import Sampler
from ganfast.data.source import names, open_dataset
from ganfast.data.toy import modes, sigma, toy

__all__ = ["Dataset", "Sampler", "modes", "names", "open_dataset", "sigma", "toy"]
