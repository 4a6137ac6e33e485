"""Monotone latencies over a grid of matmul lengths: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def smoothed(ms: Floats) -> Floats:
    """Return the cumulative maximum along every dimension.

    `ms` float64 of any shape; unknown entries are NaN and stay NaN.
    """
    raised = reduce(lambda values, axis: np.fmax.accumulate(values, axis=axis), range(ms.ndim), ms)
    return np.where(np.isnan(ms), np.nan, raised)


def filled(ms: Floats, lengths: Sequence[Sequence[int]]) -> Floats:
    """Return monotone entries with an estimate for each unknown entry (NaN); known entries do not change.

    The estimate is the nearest known entry scaled by MACs, clipped to the known entries below and above. Distance is
    measured in logarithms of lengths. `ms` float64 from `smoothed`, with at least one known entry; `lengths` has one
    ascending list for each dimension.
    """
    known = ~np.isnan(ms)
    logs = np.stack(np.meshgrid(*[np.log(np.asarray(axis, float)) for axis in lengths], indexing="ij"), axis=-1)
    sources, times, macs = logs[known], ms[known], logs.sum(axis=-1)
    scaled = ms.copy()
    for index in np.argwhere(~known):
        place = tuple(index)
        nearest = np.square(sources - logs[place]).sum(axis=1).argmin()
        scaled[place] = times[nearest] * np.exp(macs[place] - sources[nearest].sum())
    low = reduce(lambda values, axis: np.fmax.accumulate(values, axis=axis), range(ms.ndim), ms)
    flipped = np.flip(ms)
    high = np.flip(reduce(lambda values, axis: np.fmin.accumulate(values, axis=axis), range(ms.ndim), flipped))
    return smoothed(np.where(known, ms, np.fmin(np.fmax(scaled, low), high)))
