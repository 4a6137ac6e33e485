"""Arithmetic of interleaved timing: how many runs, in which order, and what they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vitslim.results import Measurement

T = TypeVar("T")

ROUNDS_MIN = 5
ROUNDS_MAX = 1000
SLICE_SECONDS = 0.02
RUNS_MAX = 5


def runs_per_round(seconds: float) -> int:
    """How often a file that takes so long runs in one round: about 20 ms worth, 1 to 5 times."""
    return max(1, min(RUNS_MAX, int(SLICE_SECONDS / max(seconds, 1e-9))))


def round_count(budget_seconds: float, round_seconds: float) -> int:
    """Rounds that fit the budget; never fewer than 5, so that there is a spread."""
    return max(ROUNDS_MIN, min(ROUNDS_MAX, int(budget_seconds / max(round_seconds, 1e-9))))


def rotated(items: Sequence[T], start: int) -> list[T]:
    """The items beginning at another one each round, so that none always runs in the wake of the same neighbor."""
    shift = start % len(items)
    return [*items[shift:], *items[:shift]]


Rounds = Sequence[Sequence[float]]
"""Seconds of single runs, one sequence a round."""


def summarize(rounds: Rounds, baseline: Rounds | None, backend: str, batch: int, threads: int) -> Measurement:
    """Median and interquartile range of the runs of one file, and of its speed-up round by round.

    `baseline` holds the same rounds of the baseline; None for the baseline itself.
    """
    runs_ms = 1e3 * np.concatenate([np.asarray(times) for times in rounds])
    speedup = speedup_spread = None
    if baseline is not None:
        ratios = np.array([np.median(b) / np.median(t) for b, t in zip(baseline, rounds, strict=True)])
        speedup, speedup_spread = float(np.median(ratios)), _interquartile(ratios)
    return Measurement(
        backend=backend, batch=batch, threads=threads, n=len(runs_ms),
        median_ms=float(np.median(runs_ms)), spread_ms=_interquartile(runs_ms),
        speedup=speedup, speedup_spread=speedup_spread,
    )  # fmt: skip


def _interquartile(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    low, high = np.percentile(values, (25, 75))
    return float(high - low)
