"""Resolved recipes, lock files, the schema and assumptions; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitslim.recipe import (
    Locked,
    assumptions,
    load_recipe,
    lock_text,
    packaged_recipes,
    recipe_schema,
    recipe_text,
    validate,
)
from vitslim.recipe.document.check import check, inlined
from vitslim.recipe.document.yaml12 import parse_yaml, read_yaml
from vitslim.recipe.stages import kinds
from vitslim.results import Assumption


@pytest.mark.parametrize("info", packaged_recipes(), ids=lambda info: info.name)
def test_resolved_text_loads_as_the_same_recipe(info: Any, tmp_path: Path) -> None:
    recipe = load_recipe(info.name, partial=True)
    (tmp_path / "again.yaml").write_text(recipe_text(recipe))
    again = load_recipe(tmp_path / "again.yaml", partial=True)
    assert again == recipe
    assert recipe_text(again) == recipe_text(recipe)


def test_a_lock_file_is_a_recipe_with_absolute_paths(tmp_path: Path, document: dict[str, Any]) -> None:
    document["data"] = {"kind": "imagefolder", "root": "images", "also_evaluate": {"more": "m"}}
    document["stages"][1]["distill"]["teacher"] = {"timm": "x", "checkpoint": "t.safetensors"}
    text = lock_text(validate(document), Locked(versions={"torch": "2.10"}, digests={"data": "0e12"}))
    assert parse_yaml(text)["locked"] == {"versions": {"torch": "2.10"}, "digests": {"data": "0e12"}}
    (tmp_path / "recipe.lock.yaml").write_text(text)
    again = load_recipe(tmp_path / "recipe.lock.yaml")
    assert again.data.root == str(Path("images").absolute())
    assert again.data.also_evaluate == {"more": str(Path("m").absolute())}
    assert again.model.checkpoint == str(Path("weights.safetensors").absolute())
    assert again.stages[1].teacher.checkpoint == str(Path("t.safetensors").absolute())
    assert again.stages[0] == validate(document).stages[0]


def test_a_lock_file_has_absolute_paths_of_every_teacher(tmp_path: Path, document: dict[str, Any]) -> None:
    document["stages"][1]["distill"]["teacher"] = ["dense", {"timm": "x", "checkpoint": "t.safetensors"}]
    (tmp_path / "recipe.lock.yaml").write_text(lock_text(validate(document), Locked(versions={}, digests={})))
    first, second = load_recipe(tmp_path / "recipe.lock.yaml").stages[1].teachers
    assert (first, second.checkpoint) == ("dense", str(Path("t.safetensors").absolute()))


def test_packaged_weights_stay_portable_in_a_lock_file() -> None:
    text = lock_text(load_recipe("quickstart"), Locked(versions={}, digests={}))
    assert parse_yaml(text)["model"]["checkpoint"] == "package:quickstart.safetensors"


def test_the_schema_is_json_and_names_every_stage() -> None:
    schema = recipe_schema()
    assert json.loads(json.dumps(schema)) == schema
    entries = schema["properties"]["stages"]["items"]["anyOf"]
    assert [next(iter(entry["properties"])) for entry in entries[1:]] == list(kinds())
    assert entries[0]["enum"] == ["distill", "quantize", "token-squeeze", "export"]
    assert "method" in schema["$defs"]["DepGraph"]["required"]
    assert "method" not in schema["$defs"]["Ptq"].get("required", [])


@pytest.mark.parametrize("info", packaged_recipes(), ids=lambda info: info.name)
def test_packaged_recipes_fit_the_published_schema(info: Any) -> None:
    schema = recipe_schema()
    assert check(read_yaml(info.path), inlined(schema, schema["$defs"])) == []


def test_assumptions_are_the_unconfirmed_defaults_in_use(document: dict[str, Any]) -> None:
    document["stages"].insert(2, {"token-squeeze": {"blocks": [1]}})
    document["stages"].insert(3, {"token-squeeze": {"blocks": [2], "rounding": "ceil"}})
    found = [Assumption(**item) for item in assumptions(validate(document))]
    assert {item.key: item.value for item in found} == {
        "stages.1.distill.temperature": "1.0",
        "stages.1.distill.train.wd": "0.05",
        "stages.2.token-squeeze.rounding": "ceil",
    }


def test_recipes_load_without_torch() -> None:
    program = (
        "import sys, vitslim.recipe; vitslim.recipe.load_recipe('quickstart')\n"
        "print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
