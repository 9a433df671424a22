"""Benchmarks: each prints its measurements; none asserts a time."""
