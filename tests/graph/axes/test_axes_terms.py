"""Terms and their unification: refinement, conflicts, and positions of indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vitslim.graph.axes.indices import axis_indices, kept_positions, repeated
from vitslim.graph.axes.terms import (
    UNIT,
    ConflictError,
    Prim,
    Prod,
    Sum,
    Term,
    Terms,
    fresh,
    join,
    prims,
    product,
    size,
)


def test_two_axes_become_one() -> None:
    terms, (a, b, c) = Terms(), (Prim(5), Prim(5), Prim(5))
    terms.unify(a, b)
    terms.unify(b, c)
    assert terms.find(a) is terms.find(b) is terms.find(c)


def test_products_meet_in_their_common_refinement() -> None:
    """(2, 6) and (4, 3) are both (2, 2, 3)."""
    terms, a, b = Terms(), Prod((Prim(2), Prim(6))), Prod((Prim(4), Prim(3)))
    terms.unify(a, b)
    assert terms.find(a) == terms.find(b)
    assert [prim.size for prim in prims(terms.find(a))] == [2, 2, 3]


def test_sums_meet_in_their_common_refinement() -> None:
    terms, a, b = Terms(), Sum((Prim(2), Prim(6))), Sum((Prim(5), Prim(3)))
    terms.unify(a, b)
    assert [prim.size for prim in prims(terms.find(a))] == [2, 3, 3]
    assert terms.find(a) == terms.find(b)


def test_a_sum_of_equal_parts_is_a_product_whose_lead_cannot_be_cut() -> None:
    """Split into q, k, v, and reshaped as (3, 4): the parts become one axis, and the axis of three cannot be cut."""
    terms, (q, k, v), (lead, rest) = Terms(), (Prim(4), Prim(4), Prim(4)), (Prim(3), Prim(4))
    terms.unify(Sum((q, k, v)), Prod((lead, rest)))
    assert terms.find(q) is terms.find(k) is terms.find(v) is terms.find(rest)
    assert terms.find(lead) == Sum((UNIT, UNIT, UNIT))


def test_unequal_parts_share_a_factor() -> None:
    """Two heads and three heads of four: each group of heads stays an axis of its own."""
    terms, few, many = Terms(), Prim(8), Prim(12)
    heads, width = terms.factor(Sum((few, many)), 5)
    assert [size(part) for part in prims(terms.find(heads))] == [2, 3]
    assert terms.find(few) == product((terms.find(next(prims(heads))), terms.find(width)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Prim(4), Prim(5)),
        (Prod((Prim(2), Prim(3))), Prod((Prim(3), Prim(2)))),
        (Sum((Prim(2), Prim(4))), Prod((Prim(2), Prim(3)))),
        (Sum((Prod((Prim(2), Prim(3))), Prim(2))), Sum((Prim(4), Prim(4)))),
    ],
    ids=["sizes", "factors cross", "unequal parts", "cut through a group"],
)
def test_conflicts(a: Term, b: Term) -> None:
    with pytest.raises(ConflictError):
        Terms().unify(a, b)


def test_freezing_covers_axes_tied_before_and_after() -> None:
    terms, a, b, c = Terms(), Prim(6), Prim(6), Prim(6)
    terms.unify(a, b)
    terms.freeze(a, "because")
    terms.freeze(a, "also")
    terms.unify(b, c)
    head, tail = terms.factor(c, 2)
    assert [terms.reasons(prim) for prim in (*prims(head), *prims(tail))] == [("because", "also")] * 2


def test_an_axis_that_multiplies_itself_is_found() -> None:
    a, b = Prim(3), Prim(2)
    assert repeated(Prod((a, a))) == {a}
    assert repeated(Sum((Prod((a, b)), Prod((a, b))))) == set()


def test_indices_in_sums_of_products() -> None:
    heads, width, value = Prim(2), Prim(2), Prim(3)
    term = Sum((Prod((heads, width)), Prod((heads, value))))
    assert axis_indices(term, heads).tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert axis_indices(term, width).tolist() == [0, 1, 0, 1, *[-1] * 6]


@given(sizes=st.lists(st.integers(2, 4), min_size=1, max_size=3), data=st.data())
def test_kept_positions_are_those_of_the_kept_indices(sizes: list[int], data: st.DataObject) -> None:
    """Row-major: slicing an array of the factors' shape and flattening gives the same positions."""
    factors = [Prim(n) for n in sizes]
    kept = {
        f: np.array(data.draw(st.permutations(range(f.size)))[: data.draw(st.integers(1, f.size))]) for f in factors
    }
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)
    expected = grid[np.ix_(*kept.values())].reshape(-1)
    term = product(factors)
    assert kept_positions(term, kept).tolist() == expected.tolist()
    assert size(term, {f: len(i) for f, i in kept.items()}) == len(expected)
    both = join((term, Prim(3)))
    assert kept_positions(both, kept).tolist() == [*expected, *range(grid.size, grid.size + 3)]


LEAVES = st.integers(1, 4).map(fresh)


def _grow(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    several = st.lists(inner, min_size=1, max_size=3)
    return several.map(product) | several.map(join)


TREES = st.recursive(LEAVES, _grow, max_leaves=6)


def _meaning(terms: Terms, term: Term) -> dict[Prim, list[int]]:
    """Return the positions of each index of each axis: equal for `a * (b + c)` and `a*b + a*c`."""
    found = terms.find(term)
    return {prim: axis_indices(found, prim).tolist() for prim in prims(found)}


@example(a=product([fresh(2), fresh(2)]), b=join([fresh(2), fresh(1), fresh(1)]), at=0)
@example(a=product([fresh(2), join([fresh(2), fresh(2)])]), b=product([join([fresh(2), fresh(2)]), fresh(2)]), at=0)
@given(a=TREES, b=TREES, at=st.integers(0, 40))
def test_operations_keep_sizes_and_meaning(a: Term, b: Term, at: int) -> None:
    """Unifying, cutting and factoring keep sizes, give equal terms, and change nothing the second time."""
    terms, total = Terms(), size(a)
    try:
        left, right = terms.cut(a, at % (total + 1))
        assert _meaning(terms, join((left, right))) == _meaning(terms, a)
        head, tail = terms.factor(a, at % total + 1)
        assert size(head) * size(tail) == total
        terms.unify(a, b)
    except ConflictError:
        assert size(terms.find(a)) == total
        return
    assert _meaning(terms, a) == _meaning(terms, b)
    before = _meaning(terms, a)
    terms.unify(b, a)
    assert _meaning(terms, a) == before


@given(a=st.lists(LEAVES, min_size=1, max_size=4), data=st.data())
def test_a_reshape_that_groups_whole_dimensions_can_be_undone(a: list[Term], data: st.DataObject) -> None:
    terms, at = Terms(), data.draw(st.integers(0, len(a)))
    grouped = terms.regroup(a, [size(product(a[:at])), size(product(a[at:]))])
    back = terms.regroup(grouped, [size(term) for term in a])
    assert [terms.find(term) for term in back] == [terms.find(term) for term in a]
