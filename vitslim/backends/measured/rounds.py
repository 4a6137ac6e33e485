"""Arithmetic of interleaved timing: number and order of runs, and their summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from vitslim.results import Measurement

T = TypeVar("T")

Floats = npt.NDArray[np.float64]
ROUNDS_MIN = 5
ROUNDS_MAX = 1000
SLICE_SECONDS = 0.02
RUNS_MAX = 5
RESAMPLES = 1000


def runs_per_round(seconds: float) -> int:
    """Return how often a file with this latency runs in one round: for about 20 ms, 1 to 5 times."""
    return max(1, min(RUNS_MAX, int(SLICE_SECONDS / max(seconds, 1e-9))))


def round_count(budget_seconds: float, round_seconds: float) -> int:
    """Return the number of rounds that fit the budget, at least 5 so that a spread can be computed."""
    return max(ROUNDS_MIN, min(ROUNDS_MAX, int(budget_seconds / max(round_seconds, 1e-9))))


def shuffled(items: Sequence[T], index: int) -> list[T]:
    """Return the items in the order of round `index`: random, so that none usually runs after the same neighbor."""
    return [items[position] for position in np.random.default_rng(index).permutation(len(items))]


Rounds = Sequence[Sequence[float]]
"""Seconds of single runs, one sequence per round."""


def summarize(rounds: Rounds, baseline: Rounds | None, backend: str, batch: int, threads: int) -> Measurement:
    """Return the median and interquartile range of the runs of one file, and its speedup with an interval.

    `baseline` holds the same rounds of the baseline; None for the baseline itself.
    """
    runs_ms = 1e3 * np.concatenate([np.asarray(times) for times in rounds])
    speedup = interval = None
    if baseline is not None:
        ratios = np.array([np.median(b) / np.median(t) for b, t in zip(baseline, rounds, strict=True)])
        speedup, interval = float(np.median(ratios)), median_interval(ratios)
    return Measurement(
        backend=backend, batch=batch, threads=threads, n=len(runs_ms),
        median_ms=float(np.median(runs_ms)), spread_ms=_interquartile(runs_ms),
        speedup=speedup, speedup_interval=interval,
    )  # fmt: skip


def median_interval(ratios: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return a bootstrap interval of the median of successive ratios, positive float64 (n,).

    Blocks of neighbors are drawn, circularly and with a fixed seed, because the load of a machine changes slowly
    (moving-block bootstrap, Künsch 1989). Few blocks make the interval too narrow, so it is widened by the quantile of
    Student's t over that of the normal distribution.
    """
    logs = np.log(ratios)
    count = len(logs)
    block = max(1, round(math.sqrt(count)))
    blocks = -(-count // block)
    starts = np.random.default_rng(0).integers(0, count, (RESAMPLES, blocks))
    indices = (starts[:, :, None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    tail = (1 - confidence) / 2
    widening = stdtrit(max(1, blocks - 1), tail) / ndtri(tail)
    median = np.median(logs)
    low, high = median + widening * (np.quantile(np.median(logs[indices], axis=1), [tail, 1 - tail]) - median)
    return float(np.exp(low)), float(np.exp(high))


def _interquartile(values: Floats) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)
