"""Throughput runs. ``ganfast bench ops`` calls those of the ops; each file says what it measures and against what."""
