"""Latency columns of a result row."""

from __future__ import annotations

from collections.abc import Sequence

from vitslim.results import Measurement


def latency_row(measurements: Sequence[Measurement]) -> dict[str, float]:
    """Return `ms_b1`, `spread_ms_b1`, `n_b1` and `speedup_b1` for batch 1, and so on; the baseline has speedup 1."""
    return {
        f"{key}_b{m.batch}": value
        for m in measurements
        for key, value in (("ms", m.median_ms), ("spread_ms", m.spread_ms), ("n", m.n), ("speedup", m.speedup or 1.0))
    }
