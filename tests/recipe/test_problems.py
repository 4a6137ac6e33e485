"""Invalid values of a recipe: path, received value, allowed values and hint."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic.json_schema import models_json_schema

from vitslim.errors import Problem, RecipeError
from vitslim.recipe import validate
from vitslim.recipe.config import EXPECTED
from vitslim.recipe.document import check
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import methods

Problems = Callable[..., dict[str, Problem]]
Document = dict[str, Any]


def test_a_valid_recipe_has_typed_stages(document: Document) -> None:
    recipe = validate(document)
    assert [stage.method for stage in recipe.stages] == ["depgraph", "distill", "ptq", "onnx"]
    assert recipe.stages[1].train.lr == 1e-4


def test_lists_become_tuples_and_integers_become_floats(document: Document) -> None:
    document["report"] = {"batches": [1, 8], "seconds": 1}
    document["gates"] = {"top1_drop_max": 2, "speedup_min": {"onnxruntime:cpu": 1}}
    recipe = validate(document)
    assert recipe.report.batches == (1, 8)
    assert isinstance(recipe.report.seconds, float)
    assert isinstance(recipe.gates.speedup_min["onnxruntime:cpu"], float)


def keywords(schema: Any) -> Iterator[str]:
    """Keywords of a JSON schema, at any depth."""
    if isinstance(schema, list):
        for one in schema:
            yield from keywords(one)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            if key != "default":
                named = key in ("properties", "patternProperties", "$defs")
                yield from keywords(list(value.values()) if named else value)


def test_every_keyword_of_the_schemas_is_checked() -> None:
    """A keyword that `check` ignores would let a value through that no config accepts."""
    _, stages = models_json_schema([(config, "validation") for config in methods()])
    found = {*keywords(Recipe.model_json_schema()), *keywords(stages)} - {EXPECTED, "x-assumed"}
    assert found - set(re.findall(r'"([a-zA-Z]+)"', inspect.getsource(check))) <= {
        "$defs", "$ref", "default", "description", "title",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message", "hint"),
    [
        ("name", "My Model", "got 'My Model', expected lower-case letters", ""),
        ("name", "../x", "expected lower-case letters", ""),
        ("name", "x\n", "expected lower-case letters", ""),
        ("name", 3, "got 3, expected lower-case letters", ""),
        ("seed", -1, "got -1, expected an integer from 0 to", ""),
        ("seed", 1.5, "got 1.5, expected an integer", ""),
        ("seed", True, "got true, expected an integer", ""),
        ("seed", "7", "got '7', expected an integer", "write it without quotes"),
        ("seed", 10**30, "too many digits", ""),
        ("description", None, "got null, expected text", ""),
        ("description", "a\x00b", "expected text", ""),
        ("description", "\ud800", "expected text", ""),
        ("description", "x" * 5000, "expected text", ""),
        ("model", "deit_tiny_patch16_224", "expected a mapping", ""),
        ("model.timm", "hf-hub:someone/model", "expected the name of a timm model", ""),
        ("model.checkpoint", 5, "got 5, expected text", ""),
        ("data", [], "got an empty list, expected a mapping", ""),
        ("data.kind", "imagefoldr", "got 'imagefoldr', expected one of 'digits', 'im", "did you mean 'imagefolder'?"),
        ("data.calibration", 0, "got 0, expected an integer above 0", ""),
        ("report.batches", 8, "got 8, expected a list with at least one entry", "write a list: [8]"),
        ("report.batches", [], "got an empty list, expected a list with at least one entry", ""),
        ("report.backends", "onnxruntime:cpu", "expected a list, each text", "write a list: [onnxruntime:cpu]"),
        ("report.seconds", float("inf"), "got inf, expected a number above 0", ""),
        ("report.seconds", float("nan"), "got nan, expected a number above 0", ""),
        ("gates.top1_min", 101, "got 101, expected a number from 0 to 100", ""),
        ("gates.speedup_min", 2, "got 2, expected a mapping of names, each to a number above 0", ""),
        ("gates.speedup_min.x", "fast", "got 'fast', expected a number above 0", ""),
        ("stages", None, "got null, expected a list of stages", ""),
        ("stages", {"prune": {}}, "got a mapping, expected a list of stages", ""),
        ("stages.0.prune.pruning_ratio", "half", "got 'half', expected a number from 0 to below 1", ""),
        ("stages.0.prune.pruning_ratio", "0.5", "got '0.5', expected a number from 0", "write it without quotes"),
        ("stages.0.prune.pruning_ratio", 1, "got 1, expected a number from 0 to below 1", ""),
        ("stages.0.prune.pruning_ratio", False, "got false, expected a number", ""),
        ("stages.0.prune.pruning_ratio", None, "got null, expected a number", ""),
        ("stages.0.prune.method", "depgrap", "got 'depgrap', expected one of 'depgraph'", "did you mean 'depgraph'?"),
        ("stages.0.prune.method", None, "got null, expected one of 'depgraph', 'two-four'", ""),
        ("stages.0.prune.mode", "bottlenek", "expected one of 'uniform', 'bottleneck'", "did you mean 'bottleneck'?"),
        ("stages.0.prune.name", "A B", "expected lower-case letters", ""),
        ("stages.1.distill.method", "onnx", "got 'onnx', expected 'distill'", ""),
        ("stages.1.distill.teacher", 5, "got 5, expected text or a mapping", ""),
        ("stages.1.distill.teacher", [], "got an empty list, expected a list with at least one entry", ""),
        ("stages.1.distill.train.lr", 0, "got 0, expected a number above 0", ""),
        ("stages.2.quantize.bits", 9, "got 9, expected", ""),
        ("stages.2.quantize.bits", 1, "got 1, expected", ""),
        ("stages.2.quantize.bits", 8.5, "got 8.5, expected", ""),
        ("stages.2.quantize.bits", True, "got true, expected", ""),
        ("stages.2.quantize.group_size", 24, "got 24, expected", ""),
        ("stages.2.quantize.activations", "statik", "got 'statik'", "static"),
        ("stages.2.quantize.skip", "head", "expected a list, each text", "write a list: [head]"),
        ("stages.2.quantize", "ptq", "got 'ptq', expected a mapping", "write `- quantize: {method: ptq}`"),
        ("stages.2.quantize", 8, "got 8, expected a mapping", "write `- quantize: {method: ptq}`"),
    ],
)  # fmt: skip
def test_wrong_value(problems: Problems, document: Document, key: str, value: object, message: str, hint: str) -> None:
    found = problems(validate, _with(document, key, value))
    assert list(found) == [key]
    assert message in found[key].message
    assert hint in found[key].hint


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("sed", "did you mean 'seed'?"),
        ("extend", "did you mean 'extends'?"),
        ("model.checkpont", "did you mean 'checkpoint'?"),
        (
            "data.shuffle",
            "allowed: also_evaluate, cache_gb, calibration, classes, eval_images, kind, label_field, max_pixels, "
            "root, val_fraction",
        ),
        ("report.batch", "did you mean 'batches'?"),
        ("stages.0.prune.pruning_rato", "did you mean 'pruning_ratio'?"),
        ("stages.1.distill.train.epoch", "did you mean 'epochs'?"),
        ("stages.2.quantize.bitz", "did you mean 'bits'?"),
    ],
)
def test_unknown_key(problems: Problems, document: Document, key: str, hint: str) -> None:
    found = problems(validate, _with(document, key, 1))
    assert list(found) == [key]
    assert found[key].message == "unknown key"
    assert found[key].hint == hint


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("name", "required key missing, expected lower-case letters"),
        ("model", "required key missing, expected a mapping"),
        ("model.timm", "required key missing, expected the name of a timm model"),
        ("data.kind", "required key missing, expected one of 'digits', 'imagefolder'"),
        ("stages", "required key missing, expected a list of stages"),
        ("stages.0.prune.method", "required key missing, expected one of 'depgraph', 'two-four'"),
    ],
)
def test_missing_key(problems: Problems, document: Document, key: str, message: str) -> None:
    *parents, last = key.split(".")
    holder: Any = document
    for step in parents:
        holder = holder[int(step) if step.isdecimal() else step]
    del holder[last]
    found = problems(validate, document)
    assert list(found) == [key]
    assert message in found[key].message


@pytest.mark.parametrize(
    ("entry", "where", "message", "hint"),
    [
        ("exprt", "", "got 'exprt', expected a stage kind", "did you mean 'export'?"),
        ({"prun": {"method": "depgraph"}}, "", "got 'prun', expected a stage kind", "did you mean 'prune'?"),
        ({"two-four": {}}, "", "got 'two-four', expected a stage kind", "write `- prune: {method: two-four}`"),
        ("etps", "", "got 'etps', expected a stage kind", "write `- token-squeeze: {method: etps}`"),
        ({7: {}}, "", "got 7, expected a stage kind", "allowed: prune, distill"),
        ("prune", ".prune.method", "required key missing", "allowed: depgraph, two-four"),
        ({"prune": None}, ".prune.method", "required key missing", "allowed: depgraph, two-four"),
        ({}, "", "expected one stage kind, got 0 keys (none)", "indent"),
        ({"prune": None, "method": "two-four"}, "", "got 2 keys ('prune', 'method')", "indent"),
        (5, "", "got 5, expected a stage", "such as"),
        (None, "", "got null, expected a stage", "such as"),
        (["prune"], "", "got a list, expected a stage", "such as"),
        ({"distill": {"teacher": {"timm": 3, "x": 1}}}, ".distill.teacher.timm", "got 3, expected the name", ""),
        ({"token-squeeze": {"blocks": [3, -1]}}, ".token-squeeze.blocks.1", "got -1, expected an integer", ""),
        ({"prune": {"method": "two-four", "layers": "gem"}}, ".prune.layers", "expected 'gemm' or a list", "'gemm'?"),
        ({"prune": {"method": "two-four", "layers": ["a", 1]}}, ".prune.layers.1", "got 1, expected text", ""),
        ({"prune": {"method": "two-four", "sum": 0.5}}, ".prune.sum", "unknown key", "allowed: layers, method"),
    ],
)  # fmt: skip
def test_wrong_stage_entry(
    problems: Problems, document: Document, entry: object, where: str, message: str, hint: str
) -> None:
    document["stages"].insert(1, entry)
    found = problems(validate, document)
    assert f"stages.1{where}" in found
    assert message in found[f"stages.1{where}"].message
    assert hint in found[f"stages.1{where}"].hint


@pytest.mark.parametrize(
    "entry", ["export", {"export": None}, {"export": {}}, {"export": {"method": "onnx", "opset": 21}}]
)
def test_forms_of_a_stage_with_one_method(document: Document, entry: object) -> None:
    document["stages"][-1] = entry
    assert validate(document).stages[-1].opset == 21


def test_all_problems_come_at_once(problems: Problems, document: Document) -> None:
    document |= {"seed": "x", "sead": 1, "data": {"kind": "digit", "calibration": -3}, "report": {"seconds": 0}}
    document["stages"][0]["prune"] |= {"pruning_ratio": 2, "importance": "tailor"}
    document["stages"][2] = "quantze"
    del document["model"]
    assert set(problems(validate, document)) == {
        "seed", "sead", "data.kind", "data.calibration", "report.seconds", "stages.0.prune.pruning_ratio",
        "stages.0.prune.importance", "stages.2", "model",
    }  # fmt: skip


def test_the_error_counts_its_problems_and_names_the_recipe(document: Document) -> None:
    with pytest.raises(RecipeError, match=r"my\.yaml has 2 problems"):
        validate(document | {"a": 1, "b": 2}, "my.yaml")


@pytest.mark.parametrize("junk", [None, [], "text", 3, [1, 2]])
def test_a_document_that_is_no_mapping(problems: Problems, junk: Any) -> None:
    assert "expected a mapping" in problems(validate, junk)[""].message


def test_an_image_folder_must_be_given_unless_partial(problems: Problems, document: Document) -> None:
    document["data"] = {"kind": "imagefolder"}
    del document["model"]["checkpoint"]
    hint = problems(validate, document)["data.root"].hint
    assert "--set data.root=DIR" in hint
    assert "--set model.checkpoint=FILE" in hint
    assert validate(document, partial=True).data.root is None


def test_extends_needs_a_file(problems: Problems, document: Document) -> None:
    assert "only a recipe file" in problems(validate, document | {"extends": "quickstart"})["extends"].message


def test_recipes_are_frozen(document: Document) -> None:
    recipe = validate(document)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def _with(document: Document, key: str, value: object) -> Document:
    *parents, last = key.split(".")
    holder: Any = document
    for step in parents:
        holder = holder[int(step)] if step.isdecimal() else holder.setdefault(step, {})
    holder[last] = value
    return document
