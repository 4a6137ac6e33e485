"""Descriptions of methods come from the schema and cover every key."""

from __future__ import annotations

import pytest

from vitslim.errors import UsageError
from vitslim.recipe import KeyInfo, describe_methods, find_methods, validate
from vitslim.recipe.document.grammar import recipe_schema
from vitslim.recipe.document.yaml12 import parse_yaml
from vitslim.recipe.stages import METHODS

METHOD_INFOS = describe_methods()


def key(method: str, name: str) -> KeyInfo:
    (info,) = find_methods(method)
    return next(entry for entry in info.keys if entry.key == name)


def test_every_method_is_described_once() -> None:
    assert len(METHOD_INFOS) == len(METHODS)
    assert len({(info.kind, info.method) for info in METHOD_INFOS}) == len(METHODS)
    assert all(info.description for info in METHOD_INFOS)


@pytest.mark.parametrize("config", METHODS)
def test_every_key_of_the_schema_is_described(config: type) -> None:
    (info,) = (m for m in METHOD_INFOS if f"{m.method}" == config.model_fields["method"].annotation.__args__[0])
    schema = recipe_schema()["$defs"][config.__name__]
    top_level = {entry.key for entry in info.keys if "." not in entry.key}
    assert top_level == set(schema["properties"]) - {"method"}


@pytest.mark.parametrize("info", METHOD_INFOS, ids=lambda info: f"{info.kind}-{info.method}")
def test_each_example_is_a_valid_entry(info: object) -> None:
    entries = parse_yaml(info.example)  # type: ignore[attr-defined]
    stages = entries if entries == ["export"] else [*entries, "export"]
    recipe = validate({"name": "x", "model": {"timm": "vit_tiny"}, "data": {"kind": "digits"}, "stages": stages})
    assert recipe.stages[0].method == info.method  # type: ignore[attr-defined]


def test_a_kind_describes_all_its_methods() -> None:
    assert [info.method for info in find_methods("quantize")] == ["ptq", "qat", "nipq"]
    assert [info.method for info in find_methods("export")] == ["onnx"]


def test_the_method_of_an_entry_without_method_is_marked() -> None:
    assert [info.method for info in METHOD_INFOS if info.is_default] == ["distill", "ptq", "etps", "onnx"]


def test_nested_keys_follow_their_mapping_with_the_defaults_of_the_parent() -> None:
    (info,) = find_methods("distill")
    names = [entry.key for entry in info.keys]
    assert names[names.index("loss") + 1] == "loss.hard"
    assert key("distill", "loss").is_mapping
    assert key("distill", "train.epochs").default == 3
    assert key("depgraph", "group_sparsity.train.lr").default == 5e-5


def test_allowed_values_defaults_and_assumptions_are_those_of_the_schema() -> None:
    assert key("two-four", "pattern").allowed == "2:4, 2:4-pairs or another N:M"
    assert key("two-four", "score").default == "magnitude"
    assert key("etps", "rounding").is_assumed
    assert not key("etps", "keep_rate").is_assumed
    assert key("depgraph", "budget").default is None
    assert key("distill", "teacher.timm").is_required


def test_an_unknown_name_gets_the_closest_method() -> None:
    with pytest.raises(UsageError, match="expected a method or a stage kind") as caught:
        find_methods("two_four")
    assert caught.value.hint == "did you mean 'two-four'?"
