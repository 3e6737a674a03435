"""Triton kernels, one file an op. They import nothing of ganfast."""
