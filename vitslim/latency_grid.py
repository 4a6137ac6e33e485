"""Latencies of matmuls on a grid of lengths, with multilinear interpolation.

Interpolation is exact at the points of the grid, and monotone in every length if the points are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise, product
from math import isfinite, prod
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

Shape = tuple[int, int, int, int]
"""`count` matmuls (rows x reduce) by (reduce x columns), for one image."""

Precision = Literal["float32", "int8"]
"""Precision of weights and activations of linear layers in a latency table; attention matmuls are always float."""


class LatencyGrid(BaseModel):
    """Milliseconds of a matmul at every combination of four lists of lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    counts: tuple[int, ...]
    rows: tuple[int, ...]
    reduce: tuple[int, ...]
    columns: tuple[int, ...]
    ms: tuple[float, ...]
    """Row-major over counts, rows, reduce, columns; monotone in every length."""

    @property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """The lists of lengths, in the order of a shape."""
        return self.counts, self.rows, self.reduce, self.columns

    def at(self, shape: Shape) -> float:
        """Return the milliseconds of a shape: interpolated inside the grid, scaled by MACs outside of it.

        A matmul with a length of zero takes no time.
        """
        places = [_place(length, known) for length, known in zip(shape, self.lengths, strict=True)]
        scale = prod(place[2] for place in places)
        strides = self._strides()
        total = 0.0
        for corner in product((False, True), repeat=4):
            share, index = 1.0, 0
            for upper, (low, fraction, _), stride in zip(corner, places, strides, strict=True):
                share *= fraction if upper else 1 - fraction
                index += (low + upper) * stride
            if share:
                total += share * self.ms[index]
        return scale * total

    def _strides(self) -> tuple[int, int, int, int]:
        rows, reduce, columns = len(self.rows), len(self.reduce), len(self.columns)
        return rows * reduce * columns, reduce * columns, columns, 1

    @model_validator(mode="after")
    def _complete_and_monotone(self) -> Self:
        for known in self.lengths:
            if not known or known[0] < 1 or any(a >= b for a, b in pairwise(known)):
                raise ValueError("lengths must be positive and ascending")
        if len(self.ms) != prod(map(len, self.lengths)):
            raise ValueError("there must be one entry for each combination of lengths")
        if not all(isfinite(value) and value >= 0 for value in self.ms):
            raise ValueError("entries must be finite and not negative")
        if any(self.ms[low] > self.ms[high] for low, high in self._neighbors()):
            raise ValueError("entries must not fall when a length grows")
        return self

    def _neighbors(self) -> Iterator[tuple[int, int]]:
        """Yield the indices of entries that are neighbors along one length."""
        for stride, known in zip(self._strides(), self.lengths, strict=True):
            for index in range(len(self.ms)):
                if index // stride % len(known) + 1 < len(known):
                    yield index, index + stride


class MatmulLatencies(BaseModel):
    """Latencies of matmuls by a weight and of matmuls of two activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    linear: LatencyGrid
    """Matmuls by a weight; their count is 1."""
    attention: LatencyGrid | None
    """Matmuls of two activations, with counts above 1; None for a model without attention."""

    def at(self, shape: Shape, is_attention: bool = False) -> float:
        """Return the milliseconds of a shape, monotone in all lengths of one kind of matmul.

        is_attention: whether a shape with count 1 multiplies two activations too, as a single head does.
        """
        count, rows, reduce, columns = shape
        if self.attention and (is_attention or count > 1):
            return self.attention.at(shape)
        return max(0, count) * self.linear.at((1, rows, reduce, columns))


def _place(length: int, known: tuple[int, ...]) -> tuple[int, float, float]:
    """Return the index of the point below, the fraction of the distance to the next, and the scale outside the grid."""
    if length <= known[0]:
        return 0, 0.0, max(0, length) / known[0]
    if length >= known[-1]:
        return len(known) - 1, 0.0, length / known[-1]
    low = bisect_right(known, length) - 1
    return low, (length - known[low]) / (known[low + 1] - known[low]), 1.0
