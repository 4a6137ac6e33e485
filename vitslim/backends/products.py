"""What every backend gives for a latency table: times of single matrix products and of the whole dense model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitslim.latency_grid import Shape


@dataclass(frozen=True)
class ProductTimes:
    """Times for a whole batch."""

    ms: Mapping[Shape, float]
    """Shape for one image to milliseconds; a shape with count 1 multiplies by a weight, any other two activations."""
    dense_ms: float
    """The whole model."""
    n: int = 0
    """Timed runs of each shape, at least; 0 for a simulated backend."""
    spread: float = 0.0
    """Interquartile range over median, the median of all shapes."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of a simulated backend."""


def for_batch(shape: Shape, batch: int) -> Shape:
    """What a runtime multiplies for a batch: rows of all images by one weight, or one pair of activations an image."""
    count, rows, reduce, columns = shape
    return (1, batch * rows, reduce, columns) if count == 1 else (batch * count, rows, reduce, columns)
