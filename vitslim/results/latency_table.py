"""The latency table of a model: matmul latencies on a grid of lengths, on one backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from vitslim.latency_grid import MatmulLatencies, Precision, Shape
from vitslim.results.value import Value
from vitslim.results.values import Environment


class TableCheck(Value):
    """Errors of a table on pruned models, each estimated by a fit that does not include it (leave-one-out)."""

    models: int
    """Number of pruned models."""
    median_error: float
    """Median of |estimate / latency - 1|."""
    worst_error: float


class LatencyTable(Value):
    """Latencies of a model on one backend, at all lengths that pruning and token squeezing may give its axes.

    A matmul is read from a grid of lengths; other operators cost a time for each value that they compute.
    """

    schema_version: Literal[4] = 4
    model: str
    kwargs: dict[str, int | float | str | bool] = Field({})
    """Arguments of the timm model."""
    backend: str
    kind: Literal["measured", "simulated"]
    precision: Precision = "float32"
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
    """Latency of the dense model without its matmuls."""
    token_ms: float
    """Part of `rest_ms` that is proportional to the number of tokens."""
    squeeze_ms: float
    """Latency of one token squeeze without its matmuls."""
    matmuls: MatmulLatencies
    operators_ns: dict[str, float] = Field({})
    """Kind of an operator other than matmuls to nanoseconds for each of its values of one image, for the batch."""
    fixed_ms: float
    """Part of `rest_ms` that does not depend on any length."""
    check: TableCheck | None = None
    """None for a model without prunable axes."""

    def matmul_ms(self, shape: Shape, is_attention: bool) -> float:
        """Return the milliseconds of a matmul by a weight, or of two activations."""
        return self.matmuls.at(shape, is_attention)

    def operator_ms(self, kind: str, elements: int) -> float:
        """Return the milliseconds of an operator that computes so many values for one image."""
        return self.operators_ns.get(kind, 0.0) * elements / 1e6

    def estimate_ms(self, matmuls: Iterable[tuple[Shape, bool]], operators: Iterable[tuple[str, int]]) -> float:
        """Return the milliseconds of a model.

        matmuls: shape, and whether it multiplies two activations. operators: kind and number of values.
        """
        total = self.fixed_ms + sum(self.matmul_ms(shape, is_attention) for shape, is_attention in matmuls)
        return total + sum(self.operator_ms(kind, elements) for kind, elements in operators)
