"""The `schedule` key of token squeezing: contradictions among keys, paths, and lock files. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import Problem
from vitslim.pipeline.plan import build_plan
from vitslim.recipe import Locked, load_recipe, lock_text, validate
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.schema import Recipe

Problems = Callable[..., dict[str, Problem]]


def recipe_with(document: dict[str, Any], *stages: dict[str, Any]) -> Recipe:
    document["stages"] = [*({"token-squeeze": {"method": "etps", **keys}} for keys in stages), "export"]
    return validate(document)


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ({"schedule": {}}, "schedule", "got none of them, expected exactly one of macs and latency"),
        ({"schedule": {"macs": 0.5, "latency": 0.5, "table": "t.json"}}, "schedule", "got macs and latency"),
        ({"schedule": {"latency": 0.5}}, "schedule.table", "needs a latency table"),
        ({"schedule": {"macs": 0.5, "table": "t.json"}}, "schedule.table", "a latency table without `latency`"),
        ({"schedule": {"macs": 0.5}, "keep_rate": 0.7}, "keep_rate", "`schedule` chooses the number of kept tokens"),
    ],
)
def test_contradictions(
    document: dict[str, Any], problems: Problems, keys: dict[str, Any], where: str, words: str
) -> None:
    found = problems(build_plan, recipe_with(document, keys), trace=False)
    assert list(found) == [f"stages.0.token-squeeze.{where}"]
    assert words in found[f"stages.0.token-squeeze.{where}"].message


def test_values_out_of_range_are_refused(document: dict[str, Any], problems: Problems) -> None:
    found = problems(recipe_with, document, {"schedule": {"macs": 0, "params": 0.5}})
    assert set(found) == {"stages.0.token-squeeze.schedule.macs", "stages.0.token-squeeze.schedule.params"}


def test_a_schedule_is_the_only_stage_that_squeezes_tokens(document: dict[str, Any], problems: Problems) -> None:
    found = problems(build_plan, recipe_with(document, {"blocks": [1]}, {"schedule": {"macs": 0.5}}), trace=False)
    assert list(found) == ["stages.1.token-squeeze.schedule"]
    assert "another stage squeezes tokens too" in found["stages.1.token-squeeze.schedule"].message


def test_a_lock_file_repeats_the_recipe(tmp_path: Path, document: dict[str, Any]) -> None:
    recipe = recipe_with(document, {"schedule": {"latency": 0.6, "table": "t.json"}, "blocks": [1, 2]})
    (tmp_path / "recipe.lock.yaml").write_text(lock_text(recipe, Locked(versions={}, digests={})))
    again: Any = load_recipe(tmp_path / "recipe.lock.yaml").stages[0]
    assert again.schedule == CostTarget(latency=0.6, table=str(Path("t.json").absolute()))
    assert (again.blocks, again.keep_rate) == ((1, 2), None)
    build_plan(load_recipe(tmp_path / "recipe.lock.yaml"), trace=False)


def test_the_table_is_relative_to_the_recipe(tmp_path: Path, document: dict[str, Any]) -> None:
    text = """
        name: small
        model: {timm: deit_tiny_patch16_224}
        data: {kind: digits}
        stages: [{token-squeeze: {schedule: {latency: 0.6, table: t.json}}}, export]
    """
    (tmp_path / "recipe.yaml").write_text(text)
    stage: Any = load_recipe(tmp_path / "recipe.yaml").stages[0]
    assert stage.schedule.table == str(tmp_path / "t.json")
