"""Arithmetic of interleaved timing: number and order of runs, and their summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from vitslim.results import Measurement

T = TypeVar("T")

Floats = npt.NDArray[np.float64]
BLOCKS = 8
"""Blocks of rounds; the spread between them gives the interval of a speedup."""
ROUNDS_MAX = 200
"""Rounds of a block."""
SLICE_SECONDS = 0.02
RUNS_MAX = 5


def runs_per_round(seconds: float) -> int:
    """Return how often a file with this latency runs in one round: for about 20 ms, 1 to 5 times."""
    return max(1, min(RUNS_MAX, int(SLICE_SECONDS / max(seconds, 1e-9))))


def round_count(budget_seconds: float, round_seconds: float) -> int:
    """Return the number of rounds that fit the budget of a block, from 1 to ROUNDS_MAX."""
    return max(1, min(ROUNDS_MAX, int(budget_seconds / max(round_seconds, 1e-9))))


def shuffled(items: Sequence[T], index: int) -> list[T]:
    """Return the items in the order of round `index`: random, so that none usually runs after the same neighbor."""
    return [items[position] for position in np.random.default_rng(index).permutation(len(items))]


Rounds = Sequence[Sequence[float]]
"""Seconds of single runs, one sequence per round."""


def summarize(
    blocks: Sequence[Rounds], baseline: Sequence[Rounds] | None, backend: str, batch: int, threads: int
) -> Measurement:
    """Return the median and interquartile range of the runs of one file, and its speedup with an interval.

    `baseline` holds the same blocks of rounds of the baseline; None for the baseline itself. The speedup of a block is
    the median over its rounds of baseline time over own time.
    """
    runs_ms = 1e3 * np.concatenate([np.asarray(times) for rounds in blocks for times in rounds])
    speedup = interval = None
    if baseline is not None:
        speedup, interval = mean_interval([_speedup(*pair) for pair in zip(blocks, baseline, strict=True)])
    return Measurement(
        backend=backend, batch=batch, threads=threads, n=len(runs_ms),
        median_ms=float(np.median(runs_ms)), spread_ms=_interquartile(runs_ms),
        speedup=speedup, speedup_interval=interval,
    )  # fmt: skip


def _speedup(rounds: Rounds, baseline: Rounds) -> float:
    return float(np.median([np.median(b) / np.median(t) for b, t in zip(baseline, rounds, strict=True)]))


def mean_interval(ratios: Sequence[float], confidence: float = 0.95) -> tuple[float, tuple[float, float]]:
    """Return the geometric mean of two or more independent positive ratios, and its interval by Student's t.

    Successive rounds are not independent, because the load of a machine changes slowly; blocks of them nearly are
    (batch means, Conway 1963).
    """
    logs = np.log(ratios)
    mean, error = logs.mean(), logs.std(ddof=1) / math.sqrt(len(logs))
    half = stdtrit(len(logs) - 1, (1 + confidence) / 2) * error
    return float(np.exp(mean)), (float(np.exp(mean - half)), float(np.exp(mean + half)))


def _interquartile(values: Floats) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)
