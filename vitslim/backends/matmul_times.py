"""Latencies of single matmuls and of the whole dense model, from which latency tables are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitslim.latency_grid import Shape


@dataclass(frozen=True)
class MatmulTimes:
    """Latencies for a whole batch."""

    ms: Mapping[Shape, float]
    """Shape for one image to milliseconds. A shape with count 1 multiplies by a weight, others two activations."""
    dense_ms: float
    """The whole model."""
    n: int = 0
    """Minimum number of timed runs of a shape; 0 for a simulated backend."""
    spread: float = 0.0
    """Interquartile range over median; the median over all shapes."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of a simulated backend."""


def batched(shape: Shape, batch: int) -> Shape:
    """Return the shape that a runtime multiplies for a batch.

    Matmuls by a weight join the rows of all images; matmuls of two activations multiply the count.
    """
    count, rows, reduce, columns = shape
    return (1, batch * rows, reduce, columns) if count == 1 else (batch * count, rows, reduce, columns)
