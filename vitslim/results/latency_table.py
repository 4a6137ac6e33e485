"""The latency table of a model: matmul latencies on a grid of lengths, on one backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from vitslim.latency_grid import MatmulLatencies, Shape
from vitslim.results.value import Value
from vitslim.results.values import Environment


class LatencyTable(Value):
    """Latencies of a model on one backend: its matmuls at all shapes that pruning and token squeezing may give them."""

    schema_version: Literal[3] = 3
    model: str
    kwargs: dict[str, int | float | str | bool] = Field({})
    """Arguments of the timm model."""
    backend: str
    kind: Literal["measured", "simulated"]
    settings: dict[str, str] = Field({})
    batch: int
    threads: int | None
    """None for a simulated backend."""
    environment: Environment
    n: int
    """Smallest number of timed runs of an entry; 0 for a simulated backend."""
    spread: float
    """Median over all entries of the interquartile range over the median."""
    dense_ms: float
    """Latency of the dense model."""
    rest_ms: float
    """Latency of the dense model without its matmuls; pruning does not change it."""
    token_ms: float
    """Part of `rest_ms` that is proportional to the number of tokens."""
    squeeze_ms: float
    """Latency of one token squeeze without its matmuls."""
    scale: float = 1.0
    """Factor on all entries; below 1 only if the matmuls add up to more than the latency of the dense model."""
    matmuls: MatmulLatencies

    def estimate_ms(self, shapes: Iterable[Shape]) -> float:
        """Return the milliseconds of a model with matmuls of these shapes: the fixed rest and the sum over matmuls."""
        return self.rest_ms + self.scale * sum(self.matmuls.at(shape) for shape in shapes)
