"""Samples scored against real images: what is compared, by which features and metrics, and what is told beside each score."""
