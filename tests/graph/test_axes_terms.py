"""Terms and their unification: refinement, conflicts, and where indices lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitslim.graph.axes.terms import (
    Prim,
    Prod,
    Sum,
    Term,
    factors_of,
    find,
    freeze,
    kept_positions,
    key,
    leaves,
    new_size,
    parts_of,
    positions,
    repeated,
    size,
    unify,
)


def frozen(*terms: Term) -> bool:
    return all(prim.frozen for term in terms for prim in leaves(term))


def test_two_axes_become_one() -> None:
    a, b, c = Prim(5), Prim(5), Prim(5)
    unify(a, b)
    unify(b, c)
    assert find(a) is find(b) is find(c)
    assert not frozen(a)


def test_an_axis_is_refined_by_a_reshape() -> None:
    a = Prim(12)
    heads, width = factors_of(a, (3, 4))
    assert key(a) == key(Prod((heads, width)))
    assert size(a) == 12


def test_products_meet_in_their_common_refinement() -> None:
    """(2, 6) and (4, 3) are both (2, 2, 3)."""
    a, b = Prod((Prim(2), Prim(6))), Prod((Prim(4), Prim(3)))
    unify(a, b)
    assert key(a) == key(b)
    assert [prim.size for prim in leaves(a)] == [2, 2, 3]
    assert not frozen(a)


def test_sums_meet_in_their_common_refinement() -> None:
    a, b = Sum((Prim(2), Prim(6))), Sum((Prim(5), Prim(3)))
    unify(a, b)
    assert key(a) == key(b)
    assert [prim.size for prim in leaves(a)] == [2, 3, 3]


def test_a_sum_of_equal_parts_is_a_product() -> None:
    """Split into q, k, v, and reshaped as (3, 4): the parts become one axis, their index stays."""
    q, k, v = Prim(4), Prim(4), Prim(4)
    lead, rest = Prim(3), Prim(4)
    unify(Sum((q, k, v)), Prod((lead, rest)))
    assert find(q) is find(k) is find(v) is find(rest)
    assert frozen(lead)
    assert not frozen(rest)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Prim(4), Prim(5)),
        (Prod((Prim(2), Prim(3))), Prod((Prim(3), Prim(2)))),
        (Sum((Prim(2), Prim(4))), Prod((Prim(2), Prim(3)))),
    ],
    ids=["sizes", "factors cross", "unequal parts"],
)
def test_a_conflict_freezes_both(a: Term, b: Term) -> None:
    unify(a, b)
    assert frozen(a, b)


def test_an_axis_cannot_be_part_of_itself() -> None:
    a, b = Prim(6), Prim(2)
    unify(a, Prod((b, Prim(3))))
    unify(b, Prim(2))
    pieces = list(leaves(a))
    unify(pieces[1], Sum((Prim(1), Prim(2))))
    unify(a, a)
    assert size(a) == 6
    c = Prim(4)
    unify(c, Sum((Prod((c, Prim(1))),)))
    assert find(c) is c


def test_freezing_reaches_everything_tied_before_and_after() -> None:
    a, b, c = Prim(6), Prim(6), Prim(6)
    unify(a, b)
    freeze(a, "because")
    unify(b, c)
    pieces = factors_of(c, (2, 3))
    assert all(prim.frozen == "because" for piece in pieces for prim in leaves(piece))


def test_an_axis_that_multiplies_itself_is_told() -> None:
    a, b = Prim(3), Prim(2)
    assert repeated(Prod((a, a))) == {a}
    assert repeated(Sum((Prod((a, b)), Prod((a, b))))) == set()


def test_positions_in_sums_of_products() -> None:
    heads, width, value = Prim(2), Prim(2), Prim(1)
    term = Sum((Prod((heads, width)), Prod((heads, value))))
    assert positions(term, heads).tolist() == [0, 0, 1, 1, 0, 1]
    assert positions(term, width).tolist() == [0, 1, 0, 1, -1, -1]


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@given(sizes=SIZES, data=st.data())
def test_kept_positions_are_those_of_the_kept_indices(sizes: list[int], data: st.DataObject) -> None:
    """Row-major: slicing an array of the factors' shape and flattening gives the same positions."""
    factors = [Prim(n) for n in sizes]
    kept = {
        f: np.array(data.draw(st.permutations(range(f.size)))[: data.draw(st.integers(1, f.size))]) for f in factors
    }
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)
    expected = grid[np.ix_(*kept.values())].reshape(-1)
    term = Prod(tuple(factors))
    assert kept_positions(term, kept).tolist() == expected.tolist()
    assert new_size(term, {f: len(i) for f, i in kept.items()}) == len(expected)
    both = Sum((term, Prim(3)))
    assert kept_positions(both, kept).tolist() == [*expected, *range(grid.size, grid.size + 3)]


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_opening_keeps_the_size(sizes: list[int]) -> None:
    whole = Prim(sum(sizes))
    assert [size(part) for part in parts_of(whole, sizes)] == sizes
    assert size(whole) == sum(sizes)
