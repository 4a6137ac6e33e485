"""Noise of this machine: the spread of short repeated runs."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

SIZE = 192
"""Rows and columns of the repeated matmul: small enough to stay in cache and on one core."""
RUNS_PER_SAMPLE = 20


def matmul_seconds(seconds: float) -> list[float]:
    """Return the durations of equal groups of matmuls, repeated for some seconds."""
    values = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    end, found = perf_counter() + seconds, list[float]()
    while perf_counter() < end or len(found) < 3:
        start = perf_counter()
        for _ in range(RUNS_PER_SAMPLE):
            values @ values
        found.append(perf_counter() - start)
    return found


def noise(durations: Sequence[float]) -> float:
    """Return the interquartile range of equal runs over their median: 0 on a machine without any other load."""
    low, median, high = np.percentile(durations, (25, 50, 75))
    return float((high - low) / median)
