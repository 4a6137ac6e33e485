"""Terms: what one dimension of a tensor is made of, and the unification that finds which dimensions are the same axis.

A dimension is a list of indices. A `Prim` is an axis of its own, a `Prod` several axes in one dimension, the last one
fastest (what a reshape makes), a `Sum` several axes end to end (what a concatenation makes). A dimension of one index
is the empty product, so broadcasting and reshaping need no special case for it.

Unifying two terms says that they list the same indices in the same order. As in type inference, an axis that must be
taken apart to fit is bound to what it consists of; whoever used it sees it so from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, eq=False)
class Prim:
    """An axis of `size` indices; another one is the same axis only if unification says so."""

    size: int

    def __repr__(self) -> str:
        return f"Prim({self.size})@{id(self) % 0xFFFF:04x}"


@dataclass(frozen=True)
class Prod:
    """Several terms in one dimension, row-major."""

    factors: tuple[Term, ...]


@dataclass(frozen=True)
class Sum:
    """Several terms end to end in one dimension."""

    parts: tuple[Term, ...]


Term = Prim | Prod | Sum
Dims = tuple[Term, ...]

UNIT = Prod(())
"""The dimension of one index."""
EMPTY = Sum(())
"""The dimension without indices."""


class ConflictError(Exception):
    """Two terms cannot list the same indices in any way that terms express. Axes involved must be frozen."""


def fresh(size: int) -> Term:
    """Return a new dimension of which only the size is known."""
    return Prim(size) if size > 1 else (EMPTY, UNIT)[size]


def units(length: int) -> Term:
    """Return a dimension of `length` indices that belong to no axis."""
    return join([UNIT] * length)


def product(factors: Iterable[Term]) -> Term:
    """Return the row-major product in normal form: no product inside a product, no product of a single factor."""
    flat = [inner for f in factors for inner in (f.factors if isinstance(f, Prod) else (f,))]
    return flat[0] if len(flat) == 1 else Prod(tuple(flat))


def join(parts: Iterable[Term]) -> Term:
    """Return the concatenation in normal form: no sum inside a sum, no sum of a single part."""
    flat = [inner for p in parts for inner in (p.parts if isinstance(p, Sum) else (p,))]
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def size(term: Term, sizes: Mapping[Prim, int] | None = None) -> int:
    """Return the number of indices of a term; `sizes` replaces the sizes of some of its axes."""
    match term:
        case Prim():
            return sizes.get(term, term.size) if sizes else term.size
        case Prod(factors):
            return prod(size(factor, sizes) for factor in factors)
        case Sum(parts):
            return sum(size(part, sizes) for part in parts)


def prims(term: Term) -> Iterator[Prim]:
    """Yield the axes of a term from left to right, each as often as it occurs."""
    match term:
        case Prim():
            yield term
        case Prod(inner) | Sum(inner):
            for item in inner:
                yield from prims(item)


class Terms:
    """Equal terms and frozen axes of a graph."""

    def __init__(self) -> None:
        self._bound: dict[Prim, Term] = {}
        self._frozen: dict[Prim, dict[str, None]] = {}

    def find(self, term: Term) -> Term:
        """Return the normal form of a term: every bound axis is replaced by its term."""
        match term:
            case Prim():
                if term not in self._bound:
                    return term
                self._bound[term] = self.find(self._bound[term])
                return self._bound[term]
            case Prod(factors):
                return product(self.find(factor) for factor in factors)
            case Sum(parts):
                return join(self.find(part) for part in parts)

    def reasons(self, prim: Prim) -> tuple[str, ...]:
        """Return the reasons that an axis is frozen, the first one first; empty if it is not."""
        return tuple(self._frozen.get(prim, ()))

    def freeze(self, term: Term, reason: str) -> None:
        """Declare that no index of any axis of a term may be removed or moved."""
        for prim in prims(self.find(term)):
            self._frozen.setdefault(prim, {})[reason] = None

    def unify(self, a: Term, b: Term) -> None:
        """Declare that both terms list the same indices.

        Raises ConflictError after unifying the parts before the conflict.
        """
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        if size(a) != size(b):
            raise ConflictError(f"is paired with a dimension of another size ({size(a)} and {size(b)})")
        if not any(prims(Sum((a, b)))):
            return  # indices of no axis, such as `(1 + 1) * (1 + 1)` and `1 + 1 + 1 + 1`, have nothing to tie
        if isinstance(a, Prim):
            self._bind(a, b)
        elif isinstance(b, Prim):
            self._bind(b, a)
        elif isinstance(a, Prod) and isinstance(b, Prod):
            self._unify_products(a, b)
        else:
            self._unify_sums(a, b)

    def factor(self, term: Term, head_size: int) -> tuple[Term, Term]:
        """Return a term as the product of a head of that size and a tail.

        Raises ConflictError if it has no such form.
        """
        term, total = self.find(term), size(term)
        if head_size == 1:
            return UNIT, term
        if head_size == total:
            return term, UNIT
        if total % head_size:
            raise ConflictError(f"is regrouped by {head_size}, which does not divide it")
        if not any(prims(term)):
            return units(head_size), units(total // head_size)
        match term:
            case Prim():
                head, tail = fresh(head_size), fresh(total // head_size)
                self._bind(term, Prod((head, tail)))
                return head, tail
            case Prod(factors):
                return self._factor_product(factors[0], product(factors[1:]), head_size)
            case Sum(parts):
                return self._factor_sum(parts, total // head_size)

    def cut(self, term: Term, at: int) -> tuple[Term, Term]:
        """Return a term as the concatenation of its first `at` indices and the rest.

        Raises ConflictError if it has no such form.
        """
        term, total = self.find(term), size(term)
        if at <= 0:
            return EMPTY, term
        if at >= total:
            return term, EMPTY
        if not any(prims(term)):
            return units(at), units(total - at)
        match term:
            case Prim():
                left, right = fresh(at), fresh(total - at)
                self._bind(term, Sum((left, right)))
                return left, right
            case Prod(factors):
                rest = product(factors[1:])
                if at % size(rest):
                    raise ConflictError(f"is cut through a group of {size(rest)}")
                left, right = self.cut(factors[0], at // size(rest))
                return product((left, rest)), product((right, rest))
            case Sum(parts):
                return self._cut_sum(parts, at)

    def regroup(self, dims: Sequence[Term], shape: Sequence[int]) -> Dims:
        """Return the dimensions of a reshape of `dims` to `shape`, of equal size. Raises ConflictError."""
        rest, result = product(self.find(dim) for dim in dims), []
        for length in shape:
            head, rest = self.factor(rest, length)
            result.append(head)
        return tuple(result)

    def _bind(self, prim: Prim, term: Term) -> None:
        self._bound[prim] = term
        for reason in self._frozen.pop(prim, ()):
            self.freeze(term, reason)

    def _cut_sum(self, parts: tuple[Term, ...], at: int) -> tuple[Term, Term]:
        before: list[Term] = []
        for number, part in enumerate(parts):
            if at < size(part):
                left, right = self.cut(part, at)
                return join((*before, left)), join((right, *parts[number + 1 :]))
            before.append(part)
            at -= size(part)
        return join(before), EMPTY

    def _factor_product(self, first: Term, rest: Term, head_size: int) -> tuple[Term, Term]:
        if size(first) >= head_size:
            head, inner = self.factor(first, head_size)
            return head, product((inner, rest))
        if head_size % size(first):
            raise ConflictError(f"is regrouped by {size(first)} and by {head_size}, which cross")
        inner, tail = self.factor(rest, head_size // size(first))
        return product((first, inner)), tail

    def _factor_sum(self, parts: tuple[Term, ...], tail_size: int) -> tuple[Term, Term]:
        """Parts that are all made of the same tail: `a*t + b*t = (a + b) * t`."""
        if any(size(part) % tail_size for part in parts):
            raise ConflictError(f"has parts that are no multiples of {tail_size}, by which it is regrouped")
        heads, tails = zip(*(self.factor(part, size(part) // tail_size) for part in parts), strict=True)
        for tail in tails[1:]:
            self.unify(tails[0], tail)
        return join(heads), tails[0]

    def _unify_products(self, a: Prod, b: Prod) -> None:
        """Common refinement from the left: the larger leading factor is split by the smaller."""
        left: Term = a
        right: Term = b
        while isinstance(left, Prod) and isinstance(right, Prod) and left.factors and right.factors:
            first = min(size(left.factors[0]), size(right.factors[0]))
            (left_head, left), (right_head, right) = self.factor(left, first), self.factor(right, first)
            self.unify(left_head, right_head)
            left, right = self.find(left), self.find(right)
        self.unify(left, right)

    def _unify_sums(self, a: Term, b: Term) -> None:
        """Common refinement from the left: the larger leading part is cut where the smaller ends."""
        while a != EMPTY:
            first = min(size(t.parts[0]) if isinstance(t, Sum) else size(t) for t in (a, b))
            (left, a), (right, b) = self.cut(a, first), self.cut(b, first)
            self.unify(left, right)
            a, b = self.find(a), self.find(b)
