"""The cost that a schedule limits, as a function of the matmuls and the tokens of a model: MACs, or latency."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from vitslim.stages.token_squeeze.schedule.solver import Floats, Ints

if TYPE_CHECKING:
    from vitslim.results import LatencyTable


@dataclass(frozen=True)
class CostModel:
    """Cost of the operators of a model."""

    matmuls: Callable[[Ints], Floats]
    """Cost of matmuls: int64 (..., 4) of count, rows, reduce and columns to float64 (...)."""
    tokens: float = 0.0
    """Cost of all other operators that is proportional to the number of tokens, in the dense model."""
    squeeze: float = 0.0
    """Cost of one squeeze without its matmuls."""
    rest: float = 0.0
    """Cost that never changes."""


def _count_macs(shapes: Ints) -> Floats:
    macs: Floats = shapes.prod(axis=-1).astype(np.float64)
    return macs


MACS = CostModel(_count_macs)
"""Counts multiply-accumulates."""


def table_latency(table: LatencyTable) -> CostModel:
    """Return the model that reads milliseconds from a latency table."""
    at = cache(table.matmuls.at)

    def matmuls(shapes: Ints) -> Floats:
        unique, inverse = np.unique(shapes.reshape(-1, 4), axis=0, return_inverse=True)
        ms: Floats = np.array([at((int(c), int(m), int(k), int(n))) for c, m, k, n in unique])
        return ms[inverse].reshape(shapes.shape[:-1])

    return CostModel(matmuls, table.token_ms, table.squeeze_ms, table.rest_ms - table.token_ms)
