"""Whole iterations of the engine against the strongest stock PyTorch. ``ganfast bench training`` calls :mod:`.suite`."""
