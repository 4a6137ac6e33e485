"""Latencies of matrix products on a grid of lengths, and how they are read between the points.

The reading is multilinear: exact at the points, and monotone in every length wherever the points are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise, product
from math import isfinite, prod
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

Shape = tuple[int, int, int, int]
"""`count` times (rows x reduce) by (reduce x columns), for one image."""


class LatencyGrid(BaseModel):
    """Milliseconds of one product at every combination of four lists of lengths."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    counts: tuple[int, ...]
    rows: tuple[int, ...]
    reduce: tuple[int, ...]
    columns: tuple[int, ...]
    ms: tuple[float, ...]
    """Row-major over counts, rows, reduce, columns; never falls when a length grows."""

    @property
    def lengths(self) -> tuple[tuple[int, ...], ...]:
        """The lists of lengths, in the order of a shape."""
        return self.counts, self.rows, self.reduce, self.columns

    def at(self, shape: Shape) -> float:
        """Milliseconds of a shape: interpolated inside the grid, scaled by MACs from the nearest point outside.

        A product with a length of zero takes no time.
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
        """Indices of entries that differ by one step in one length."""
        for stride, known in zip(self._strides(), self.lengths, strict=True):
            for index in range(len(self.ms)):
                if index // stride % len(known) + 1 < len(known):
                    yield index, index + stride


class ProductLatencies(BaseModel):
    """Milliseconds of products with a weight and of products of two activations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    linear: LatencyGrid
    """Products with a weight, whose count is 1: all rows by one weight."""
    attention: LatencyGrid | None
    """Products of two activations, several at a time; None for a model without attention."""

    def at(self, shape: Shape) -> float:
        """Milliseconds of a shape; monotone in all four lengths. Several products never take less than one."""
        count, rows, reduce, columns = shape
        single = self.linear.at((1, rows, reduce, columns))
        if count <= 1:
            return max(0, count) * single
        return max(single, self.attention.at(shape)) if self.attention else count * single


def _place(length: int, known: tuple[int, ...]) -> tuple[int, float, float]:
    """Index of the point below, fraction of the way to the next, and the scale outside the grid."""
    if length <= known[0]:
        return 0, 0.0, max(0, length) / known[0]
    if length >= known[-1]:
        return len(known) - 1, 0.0, length / known[-1]
    low = bisect_right(known, length) - 1
    return low, (length - known[low]) / (known[low + 1] - known[low]), 1.0
