"""Weights that ship with ganfast, each with a JSON card that holds its SHA-256."""
