"""Terms over axes, and their unification.

Every dimension of every tensor is a term: `Prim(n)`, an axis of n indices; `Prod`, several axes that a reshape merged
(row-major); `Sum`, several axes one behind the other. Two dimensions that an operator pairs index by index must be the
same term; `unify` makes them so, refining axes into products and sums where it must. What cannot be the same
*freezes*: the axes stay as they are, never wrong, only not prunable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Prim:
    """An axis of `size` indices. Once unified with another term, `link` leads there."""

    __slots__ = ("frozen", "kind", "link", "size")

    def __init__(self, size: int, kind: str = "", frozen: str = "") -> None:
        self.size = size
        self.kind = kind
        self.frozen = frozen
        self.link: Term | None = None


@dataclass(frozen=True, eq=False)
class Prod:
    """Axes merged by a reshape, row-major: the last factor varies fastest."""

    factors: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Sum:
    """Axes one behind the other."""

    parts: tuple[Term, ...]


Term = Prim | Prod | Sum


def find(term: Term) -> Term:
    """The term that stands for this one now: links followed, nested products and sums flattened."""
    match term:
        case Prim():
            if term.link is None:
                return term
            term.link = find(term.link)
            return term.link
        case Prod(factors):
            return product(factors)
        case Sum(parts):
            return concatenation(parts)


def product(factors: Sequence[Term]) -> Term:
    """Factors as one term; factors of size 1 vanish."""
    flat: list[Term] = []
    for factor in map(find, factors):
        flat += factor.factors if isinstance(factor, Prod) else [factor]
    kept = [factor for factor in flat if size(factor) != 1]
    if len(kept) == 1:
        return kept[0]
    return Prod(tuple(kept)) if kept else Prim(1, frozen="has one index")


def concatenation(parts: Sequence[Term]) -> Term:
    """Parts as one term."""
    flat: list[Term] = []
    for part in map(find, parts):
        flat += part.parts if isinstance(part, Sum) else [part]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def size(term: Term) -> int:
    """Number of indices."""
    match term:
        case Prim():
            return term.size if term.link is None else size(term.link)
        case Prod(factors):
            return prod(map(size, factors))
        case Sum(parts):
            return sum(map(size, parts))


def leaves(term: Term) -> Iterator[Prim]:
    """The axes that a term is made of, from left to right; an axis that occurs twice comes twice."""
    match find(term):
        case Prim() as prim:
            yield prim
        case Prod(inner) | Sum(inner):
            for item in inner:
                yield from leaves(item)


def key(term: Term) -> object:
    """Equal for two terms exactly when they are the same axes in the same arrangement."""
    match find(term):
        case Prim() as prim:
            return id(prim)
        case Prod(factors):
            return ("prod", *map(key, factors))
        case Sum(parts):
            return ("sum", *map(key, parts))


def freeze(term: Term, reason: str) -> None:
    """Keep every axis of a term as it is; the first reason stays."""
    for prim in leaves(term):
        prim.frozen = prim.frozen or reason


def mark(term: Term, kind: str) -> None:
    """Say what the axes of a term are for a person; the first word stays."""
    for prim in leaves(term):
        prim.kind = prim.kind or kind


def unify(a: Term, b: Term) -> None:
    """Make two terms the same, index by index, or freeze both."""
    a, b = find(a), find(b)
    if a is b:
        return
    if size(a) != size(b):
        _conflict(a, b, f"pairs {size(a)} with {size(b)} indices")
    elif isinstance(a, Prim):
        _link(a, b)
    elif isinstance(b, Prim):
        _link(b, a)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _refine_products(list(a.factors), list(b.factors))
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _refine_sums(list(a.parts), list(b.parts))
    elif isinstance(a, Sum) and isinstance(b, Prod):
        _sum_as_product(a, b)
    elif isinstance(a, Prod) and isinstance(b, Sum):
        _sum_as_product(b, a)


def _conflict(a: Term, b: Term, reason: str) -> None:
    freeze(a, reason)
    freeze(b, reason)


def _link(prim: Prim, target: Term) -> None:
    if any(leaf is prim for leaf in leaves(target)):
        _conflict(prim, target, "is tied to a part of itself")
        return
    if prim.frozen:
        freeze(target, prim.frozen)
    if prim.kind:
        mark(target, prim.kind)
    prim.link = target


def _refine_products(a: list[Term], b: list[Term]) -> None:
    """Walk both from the left; a longer axis is opened into a product that starts like the other side."""
    while a and b:
        x, y = find(a[0]), find(b[0])
        if size(x) == size(y):
            unify(a.pop(0), b.pop(0))
        elif size(x) > size(y) and isinstance(x, Prim) and size(x) % size(y) == 0:
            a[:1] = _open(x, Prod, size(y), size(x) // size(y))
        elif size(y) > size(x) and isinstance(y, Prim) and size(y) % size(x) == 0:
            b[:1] = _open(y, Prod, size(x), size(y) // size(x))
        else:
            _conflict(Prod(tuple(a)), Prod(tuple(b)), "is reshaped across its factors")
            return


def _refine_sums(a: list[Term], b: list[Term]) -> None:
    while a and b:
        x, y = find(a[0]), find(b[0])
        if size(x) == size(y):
            unify(a.pop(0), b.pop(0))
        elif size(x) > size(y) and isinstance(x, Prim):
            a[:1] = _open(x, Sum, size(y), size(x) - size(y))
        elif size(y) > size(x) and isinstance(y, Prim):
            b[:1] = _open(y, Sum, size(x), size(y) - size(x))
        else:
            _conflict(Sum(tuple(a)), Sum(tuple(b)), "is split across its parts")
            return


def _open(prim: Prim, kind: type[Prod] | type[Sum], first: int, second: int) -> list[Term]:
    """Replace an axis by two; both keep its fate."""
    pieces: tuple[Term, ...] = (Prim(first, prim.kind, prim.frozen), Prim(second, prim.kind, prim.frozen))
    prim.link = kind(pieces)
    return list(pieces)


def _sum_as_product(total: Sum, merged: Prod) -> None:
    """A sum of equal parts is a product led by the index of the part, which stays."""
    count, part = len(total.parts), size(total.parts[0])
    if any(size(p) != part for p in total.parts):
        _conflict(total, merged, "is split into unequal parts and merged again")
        return
    lead, rest = Prim(count, frozen="counts the parts of a split"), Prim(part)
    unify(merged, Prod((lead, rest)))
    for other in total.parts:
        unify(other, rest)


def repeated(term: Term) -> set[Prim]:
    """Axes that are a factor of themselves, as in a matrix of all pairs that was flattened: they cannot be cut."""
    match find(term):
        case Prim():
            return set()
        case Sum(parts):
            return set().union(*map(repeated, parts))
        case Prod(factors):
            found, twice = set[Prim](), set[Prim]()
            for factor in factors:
                own = set(leaves(factor))
                twice |= found & own | repeated(factor)
                found |= own
            return twice


def parts_of(term: Term, sizes: Sequence[int]) -> tuple[Term, ...]:
    """Open a term into parts of these sizes, which sum up to its own."""
    pieces = tuple(Prim(n) for n in sizes)
    unify(term, Sum(pieces))
    return pieces


def factors_of(term: Term, sizes: Sequence[int]) -> tuple[Term, ...]:
    """Open a term into factors of these sizes, whose product is its own."""
    pieces = tuple(Prim(n) for n in sizes)
    unify(term, Prod(pieces))
    return pieces


def positions(term: Term, axis: Prim) -> Indices:
    """For each position of a dimension the index of `axis` found there, int64 (size,); -1 where it does not occur."""
    match find(term):
        case Prim() as prim:
            return np.arange(prim.size) if prim is axis else np.full(prim.size, -1)
        case Sum(parts):
            return np.concatenate([positions(part, axis) for part in parts])
        case Prod(factors):
            result = np.full(tuple(map(size, factors)), -1)
            for dim, factor in enumerate(factors):
                inner = positions(factor, axis)
                if (inner >= 0).any():
                    shape = [-1 if d == dim else 1 for d in range(len(factors))]
                    result = np.broadcast_to(inner.reshape(shape), result.shape)
            return result.reshape(-1)


def kept_positions(term: Term, kept: dict[Prim, Indices]) -> Indices:
    """Positions of a dimension that stay, in their new order, when some axes keep only these indices."""
    match find(term):
        case Prim() as prim:
            return kept.get(prim, np.arange(prim.size))
        case Sum(parts):
            starts = np.cumsum([0, *map(size, parts)])
            return np.concatenate([s + kept_positions(p, kept) for s, p in zip(starts, parts, strict=False)])
        case Prod(factors):
            result = np.zeros(1, dtype=np.int64)
            for factor in factors:
                result = (result[:, None] * size(factor) + kept_positions(factor, kept)).reshape(-1)
            return result


def new_size(term: Term, sizes: dict[Prim, int]) -> int:
    """Size of a term when some axes have another length."""
    match find(term):
        case Prim() as prim:
            return sizes.get(prim, prim.size)
        case Prod(factors):
            return prod(new_size(factor, sizes) for factor in factors)
        case Sum(parts):
            return sum(new_size(part, sizes) for part in parts)
