"""Differences between two recipes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vitslim.recipe import load_recipe, packaged_recipes, validate
from vitslim.recipe.sharing import differences


def found(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]]:
    rows = differences(validate(first), validate(second))
    result = {row.key: (row.values, row.others) for row in rows}
    assert len(result) == len(rows)
    return result


@pytest.mark.parametrize("info", packaged_recipes()[:3], ids=lambda info: info.name)
def test_a_recipe_does_not_differ_from_itself(info: Any) -> None:
    recipe = load_recipe(info.name, partial=True)
    assert differences(recipe, recipe) == ()


def test_a_default_that_is_written_out_is_no_difference(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["seed"] = 0
    other["stages"][2]["quantize"]["bits"] = 8
    assert found(document, other) == {}


def test_differing_keys_have_both_values(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["seed"], other["gates"] = 3, {"top1_min": 70}
    other["stages"][0]["prune"]["pruning_ratio"] = 0.5
    assert found(document, other) == {
        "seed": ((0,), (3,)),
        "gates.top1_min": ((None,), (70.0,)),
        "stages.0.prune.pruning_ratio": ((0.25,), (0.5,)),
    }


def test_an_added_stage_moves_no_other_stage(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["stages"].insert(1, {"token-squeeze": {"method": "etps", "blocks": [1]}})
    rows = found(document, other)
    assert {key.split(".")[2] for key in rows} == {"token-squeeze"}
    assert rows["stages.1.token-squeeze.blocks"] == ((), ([1],))
    assert found(other, document)["stages.1.token-squeeze.blocks"] == (([1],), ())


def test_another_method_of_a_kind_lists_the_keys_of_both(document: dict[str, Any]) -> None:
    other = copy.deepcopy(document)
    other["stages"][0] = {"prune": {"method": "two-four"}}
    rows = found(document, other)
    assert rows["stages.0.prune.method"] == (("depgraph",), ("two-four",))
    assert rows["stages.0.prune.pruning_ratio"] == ((0.25,), ())
    assert rows["stages.0.prune.score"][0] == ()
