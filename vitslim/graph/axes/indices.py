"""Index arithmetic of terms: the positions of an axis in a dimension, and those that remain when the axis is cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vitslim.graph.axes.terms import Prim, Prod, Sum, Term, prims, size

Indices = npt.NDArray[np.int64]

ABSENT = -1
"""Index at positions where an axis does not occur."""


def axis_indices(term: Term, axis: Prim) -> Indices:
    """Return the index of `axis` at each position of a dimension, ABSENT where it does not occur.

    `term` in normal form. int64 (size of the term,).
    """
    match term:
        case Prim():
            return np.arange(term.size) if term is axis else np.full(term.size, ABSENT)
        case Prod(factors):
            found = np.full(1, ABSENT)
            for factor in factors:
                inner = axis_indices(factor, axis)
                found = np.where(inner == ABSENT, found[:, None], inner).reshape(-1)
            return found
        case Sum(parts):
            return np.concatenate([axis_indices(part, axis) for part in parts])


def kept_positions(term: Term, kept: Mapping[Prim, Indices]) -> Indices:
    """Return the kept positions of a dimension, in order, when some axes keep only these indices in this order.

    `term` in normal form. A product keeps the outer product of the positions of its factors, a sum their concatenation.
    """
    match term:
        case Prim():
            return kept.get(term, np.arange(term.size))
        case Prod(factors):
            positions = np.zeros(1, dtype=np.int64)
            for factor in factors:
                positions = (positions[:, None] * size(factor) + kept_positions(factor, kept)).reshape(-1)
            return positions
        case Sum(parts):
            starts = np.cumsum([0, *(size(part) for part in parts)])
            return np.concatenate([at + kept_positions(p, kept) for at, p in zip(starts, parts, strict=False)])


def repeated(term: Term) -> set[Prim]:
    """Axes that occur twice in a product, such as tokens in a flattened matrix of all pairs. `term` in normal form."""
    match term:
        case Prim():
            return set()
        case Sum(parts):
            return set().union(*(repeated(part) for part in parts))
        case Prod(factors):
            own = [set(prims(factor)) for factor in factors]
            crossing = {prim for i, inner in enumerate(own) for prim in inner if any(prim in o for o in own[:i])}
            return crossing.union(*(repeated(factor) for factor in factors))
