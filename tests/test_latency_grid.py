"""Interpolation on a grid of latencies: exact at its points, monotone everywhere."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vitslim.backends.monotone import smoothed
from vitslim.latency_grid import LatencyGrid, MatmulLatencies, Shape


def grid(*lengths: tuple[int, ...], seed: int = 0) -> LatencyGrid:
    noise = np.random.default_rng(seed).random([len(axis) for axis in lengths])
    counts, rows, reduce, columns = lengths
    ms = tuple(smoothed(noise).ravel().tolist())
    return LatencyGrid(counts=counts, rows=rows, reduce=reduce, columns=columns, ms=ms)


LINEAR = grid((1,), (1, 197), (24, 64, 192), (24, 192, 576))
BOTH = MatmulLatencies(linear=LINEAR, attention=grid((2, 3), (197,), (8, 64, 197), (8, 64, 197), seed=1))
shapes = st.tuples(*[st.integers(0, top) for top in (4, 250, 300, 700)])


def test_exact_at_grid_points() -> None:
    for index, shape in enumerate(product(*LINEAR.lengths)):
        assert LINEAR.at(shape) == LINEAR.ms[index]


def test_between_and_outside_the_points() -> None:
    square = LatencyGrid(counts=(1,), rows=(10,), reduce=(8, 16), columns=(8, 16), ms=(1.0, 2.0, 3.0, 6.0))
    assert square.at((1, 10, 12, 8)) == 2.0
    assert square.at((1, 10, 12, 12)) == 3.0
    assert square.at((1, 10, 32, 16)) == 12.0
    assert square.at((1, 5, 4, 8)) == 0.25
    assert square.at((3, 10, 8, 8)) == 3.0
    assert square.at((1, 10, 0, 8)) == 0.0


@given(shapes, st.tuples(*[st.integers(0, 60)] * 4))
@settings(max_examples=300, deadline=None)
def test_monotone_in_every_length(shape: Shape, more: Shape) -> None:
    count, rows, reduce, columns = (a + b for a, b in zip(shape, more, strict=True))
    assert BOTH.at(shape, is_attention=True) <= BOTH.at((count, rows, reduce, columns), is_attention=True) * (1 + 1e-12)
    single = (1, *shape[1:])
    assert BOTH.at(single) <= BOTH.at((1, rows, reduce, columns)) * (1 + 1e-12)


def test_a_single_head_is_read_from_the_grid_of_attention() -> None:
    assert BOTH.at((1, 197, 64, 197), is_attention=True) == pytest.approx(BOTH.at((2, 197, 64, 197)) / 2)
    assert BOTH.at((1, 197, 64, 192)) == LINEAR.at((1, 197, 64, 192))


def test_several_matmuls_without_attention_take_a_multiple_of_one() -> None:
    alone = MatmulLatencies(linear=LINEAR, attention=None)
    assert alone.at((3, 197, 64, 192)) == pytest.approx(3 * alone.at((1, 197, 64, 192)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (2, 1)}, "ascending"),
        ({"rows": ()}, "ascending"),
        ({"rows": (0, 1)}, "positive"),
        ({"ms": (1.0,)}, "one entry for each"),
        ({"ms": (1.0, 0.5)}, "must not fall"),
        ({"ms": (-1.0, 0.5)}, "not negative"),
        ({"ms": (1.0, float("inf"))}, "finite"),
    ],
)
def test_bad_grids_are_refused(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"counts": (1,), "rows": (1, 2), "reduce": (8,), "columns": (8,), "ms": (1.0, 2.0)}
    LatencyGrid.model_validate(good)
    with pytest.raises(ValidationError, match=message):
        LatencyGrid.model_validate(good | changes)
