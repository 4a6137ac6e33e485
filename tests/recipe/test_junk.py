"""Recipes made of random values: a recipe, or an error that lists its problems."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.errors import RecipeError
from vitslim.recipe import validate

_LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3)
    | st.sampled_from(["depgraph", "two-four", "ptq", "export", "dense", "digits", "imagefolder", 10**30, -1, 0.5])
)  # fmt: skip
_WORD = st.sampled_from(
    ["name", "model", "timm", "checkpoint", "kwargs", "data", "kind", "root", "also_evaluate", "stages", "prune",
     "export", "distill", "quantize", "token-squeeze", "method", "teacher", "train", "loss", "blocks", "layers",
     "report", "gates", "backends", "batches", "speedup_min", "extends", "locked", "ratio"]
)  # fmt: skip
_KEY = _WORD | st.text(max_size=5) | st.integers() | st.none() | st.tuples(st.integers())
_JUNK = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEY, inner, max_size=4), max_leaves=12
)


@settings(max_examples=40)
@given(st.dictionaries(_KEY, _JUNK, max_size=8))
def test_junk_raises_nothing_but_a_recipe_error(junk: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        validate(junk)


_PLACES = [
    ("name",), ("seed",), ("model",), ("model", "kwargs"), ("data",), ("data", "also_evaluate"), ("stages",),
    ("stages", 0), ("stages", 0, "prune"), ("stages", 0, "prune", "ratio"), ("stages", 1, "distill", "teacher"),
    ("stages", 1, "distill", "train"), ("report",), ("gates",), ("locked",),
]  # fmt: skip


@settings(max_examples=40)
@given(st.sampled_from(_PLACES), _JUNK)
def test_junk_in_one_place_is_a_recipe_or_a_recipe_error(place: tuple[Any, ...], junk: object) -> None:
    document: Any = {
        "name": "test", "model": {"timm": "x", "kwargs": {}}, "data": {"kind": "digits"}, "report": {}, "gates": {},
        "stages": [{"prune": {"method": "depgraph"}}, {"distill": {}}, "export"],
    }  # fmt: skip
    holder = document
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = copy.deepcopy(junk)
    try:
        validate(document)
    except RecipeError as error:
        assert all(problem.message for problem in error.problems)
