"""Latencies that never fall when a product grows: pure functions on arrays over a grid of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def smoothed(ms: Floats) -> Floats:
    """The cumulative maximum along every dimension: each entry at least as large as all entries below it.

    `ms` float64 of any shape; NaN stands for an entry that is not known and stays NaN.
    """
    raised = reduce(lambda values, axis: np.fmax.accumulate(values, axis=axis), range(ms.ndim), ms)
    return np.where(np.isnan(ms), np.nan, raised)


def filled(ms: Floats, lengths: Sequence[Sequence[int]]) -> Floats:
    """Monotone entries with the unknown ones, NaN, estimated: the nearest known entry scaled by MACs, kept between
    the known entries below and above, which do not change.

    `ms` float64 as `smoothed` gives it, with at least one known entry; `lengths` has one ascending list for each
    dimension. Near is meant in logarithms of lengths.
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
