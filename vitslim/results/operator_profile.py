"""Times of the operators of a file, as the profiler of its runtime measured them."""

from __future__ import annotations

from typing import Literal

from vitslim.results.value import Value


class OperatorTime(Value):
    """One node of the graph that the runtime executes, after its own fusions."""

    name: str
    op: str
    """Type of the operator, such as `DynamicQuantizeMatMul`."""
    provider: str
    """Execution provider that ran it."""
    median_us: float
    """Median microseconds over the profiled runs."""


class OperatorProfile(Value):
    """Operators of one file on one backend at one batch size and thread count, the longest first.

    The profiler slows each operator down, so their shares count, and the sum exceeds the measured latency.
    """

    backend: str
    batch: int
    threads: int
    runs: int
    """Number of profiled runs, without warm-up."""
    operators: tuple[OperatorTime, ...]
    provenance: Literal["measured"] = "measured"
