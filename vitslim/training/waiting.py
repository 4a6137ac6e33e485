"""Measure how long a training waits for its images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from vitslim.progress import Progress

T = TypeVar("T")
STALL_SHARE = "stall_share"
"""Name of the metric."""
STALL_MAX = 0.1
"""Share of the time above which a training is warned about."""
SECONDS_MIN = 30.0
"""Shorter trainings are not warned about: the first batch of an epoch always waits."""


class ImageWaits:
    """Passes batches on, and measures how long each was waited for."""

    def __init__(self) -> None:
        self.last_s = 0.0
        """Seconds for which the last batch was waited for."""

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches."""
        iterator = iter(batches)
        while True:
            started = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.last_s = time.monotonic() - started
            yield batch


def stall_share(waits: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the share of the time of all steps, in [0, 1], in which the training waited for images.

    waits, seconds: of each step. On a GPU, which works off its queue meanwhile, this is an upper limit.
    """
    total = sum(seconds)
    return min(sum(waits) / total, 1.0) if total > 0 else 0.0


def warn_of_stalls(waits: Sequence[float], seconds: Sequence[float], label: str, progress: Progress) -> None:
    """Warn if a training waited for images for more than `STALL_MAX` of its time; waits, seconds: of each step."""
    share = stall_share(waits, seconds)
    if share > STALL_MAX and sum(seconds) >= SECONDS_MIN:
        progress.warn(
            f"{label}: {share:.0%} of the time passed in waiting for images; use more CPU cores, or store the images "
            "at about the size of the model's input"
        )
