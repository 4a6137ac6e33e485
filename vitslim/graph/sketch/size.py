"""Sizes as polynomials of axis lengths, so that a cost can be computed for other lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Size:
    """A polynomial over axis names: `Size(((1, ("heads", "qk")), (1, ("v",))))` is `heads*qk + v`."""

    terms: tuple[tuple[int, tuple[str, ...]], ...]

    @staticmethod
    def of(value: int) -> Size:
        """A constant."""
        return Size(((value, ()),))

    @staticmethod
    def axis(name: str) -> Size:
        """The length of one axis."""
        return Size(((1, (name,)),))

    def __add__(self, other: Size) -> Size:
        return Size(self.terms + other.terms)

    def __mul__(self, other: Size) -> Size:
        return Size(tuple((a * b, x + y) for a, x in self.terms for b, y in other.terms))

    def rename(self, old: str, new: str) -> Size:
        """Return the same size with one axis replaced."""
        return Size(tuple((factor, tuple(new if n == old else n for n in names)) for factor, names in self.terms))

    def axes(self) -> frozenset[str]:
        """Names of the axes that occur in it."""
        return frozenset(name for _, names in self.terms for name in names)

    def value(self, sizes: Mapping[str, int]) -> int:
        """Return the value for given axis lengths."""
        return sum(factor * prod(sizes[name] for name in names) for factor, names in self.terms)


ONE = Size.of(1)
