"""Expected latency of quick-select, the top-k engine of SpAtten."""

from __future__ import annotations

import numpy as np

from vitslim.backends.simulated.simulator import Floats, Ints

SHIPPED_OVERHEAD = 3.6
"""Mean cycles of a round besides its candidates in the released program with correct branches."""
RTL_OVERHEAD = 3.5
"""Mean cycles of a round besides its candidates in the RTL: 3, and the last, partly filled group of candidates."""


def shipped_rounds(candidates: Ints, width: int) -> Floats:
    """Return the mean cycles of the shipped selection loop, whose branches are swapped; same shape as `candidates`."""
    return np.asarray(2 * candidates / width, np.float64)


def correct_rounds(candidates: Ints, chosen: Ints, width: int, overhead: float = SHIPPED_OVERHEAD) -> Floats:
    """Return the mean cycles of quick-select with random pivots: `chosen` of `candidates`, `width` per cycle.

    The candidates of all rounds add up to 2 n (1 + H), H = -a ln a - (1 - a) ln(1 - a), a = chosen / candidates, in
    about 2 ln n - 1.8 rounds. Zero where every candidate is chosen, or none.
    """
    n = np.maximum(candidates, 1).astype(np.float64)
    a = np.clip(chosen / n, 0.0, 1.0)
    inside = (a > 0) & (a < 1)
    a = np.where(inside, a, 0.5)
    entropy = -a * np.log(a) - (1 - a) * np.log(1 - a)
    rounds = np.maximum(1.0, 2 * np.log(n) - 1.8)
    return np.asarray(np.where(inside, 2 * n * (1 + entropy) / width + overhead * rounds, 0.0), np.float64)
