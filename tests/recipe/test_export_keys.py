"""Keys of the export stage: names, batch size, opset and layout."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.errors import Problem, RecipeError
from vitslim.recipe import validate
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.rules import check_order


def document(export: dict[str, Any], *stages: dict[str, Any], **report: Any) -> dict[str, Any]:
    return {
        "name": "files",
        "model": {"timm": "vit_tiny_patch16_224"},
        "data": {"kind": "digits"},
        "stages": [*stages, {"export": export}],
        "report": report,
    }


def problems_of(recipe: dict[str, Any]) -> list[Problem]:
    """Return the problems that the text of a recipe shows."""
    try:
        return check_order(validate(recipe))[0]
    except RecipeError as error:
        return list(error.problems)


def test_defaults_are_the_names_of_optimum() -> None:
    form = validate(document({})).stages[-1].form  # type: ignore[attr-defined]
    assert form == FileForm("pixel_values", None, None, 21)
    assert form.output_names() == ("logits",)
    assert form.output_names(("features_0", "features_1")) == ("features_0", "features_1")
    assert FileForm(output_name="scores").output_names(("features",)) == ("scores",)
    assert FileForm(output_name="scores").output_names(("features_0", "features_1")) == ("scores_0", "scores_1")


def test_keys_become_the_form() -> None:
    keys = {"input_name": "image", "output_name": "scores", "batch": 8, "opset": 17}
    recipe = validate(document(keys, batches=[8]))
    assert recipe.stages[-1].form == FileForm("image", "scores", 8, 17)  # type: ignore[attr-defined]


INT4 = {"quantize": {"bits": 4}}
GROUPS = {"quantize": {"bits": 4, "group_size": 16, "activations": "float"}}
FP8 = {"quantize": {"format": "fp8"}}
MIXED = {"quantize": {"first_last_bits": 4}}


@pytest.mark.parametrize(
    ("export", "stages", "where", "words"),
    [
        ({"opset": 16}, (), "export.opset", "got 16"),
        ({"opset": 24}, (), "export.opset", "got 24"),
        ({"opset": 20}, (INT4,), "export.opset", "need opset 21, got `opset: 20`"),
        ({"opset": 20}, (GROUPS,), "export.opset", "need opset 21"),
        ({"opset": 20}, (MIXED,), "export.opset", "need opset 21"),
        ({"opset": 18}, (FP8,), "export.opset", "need opset 19"),
        ({"batch": 0}, (), "export.batch", "got 0"),
        ({"batch": "some"}, (), "export.batch", "got 'some'"),
        ({"batch": 4}, (), "report.batches", "takes `batch: 4` only, got [1]"),
        ({"input_name": "a b"}, (), "export.input_name", "got 'a b'"),
        ({"input_name": "logits"}, (), "export.output_name", "same name"),
        ({"layout": "zip"}, (), "export.layout", "'plain', 'hf', 'triton'"),
        ({"layout": "hf", "input_name": "image"}, (), "export.input_name", "`layout: hf` needs `pixel_values`"),
        ({"layout": "hf", "output_name": "scores"}, (), "export.output_name", "`layout: hf` needs `logits`"),
    ],
)
def test_contradictions_are_refused_with_a_hint(
    export: dict[str, Any], stages: tuple[dict[str, Any], ...], where: str, words: str
) -> None:
    (problem,) = problems_of(document(export, *stages))
    assert problem.where.endswith(where) and words in problem.message
    assert problem.hint or "expected" in problem.message


def test_the_lowest_opset_that_stores_the_weights_is_accepted() -> None:
    for opset, stages in ((21, (INT4,)), (19, (FP8,)), (17, ({"quantize": {}},)), (17, ())):
        assert problems_of(document({"opset": opset}, *stages)) == []
    assert problems_of(document({"batch": 4}, backends=["sim:a100"], batches=[4])) == []
