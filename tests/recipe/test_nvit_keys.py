"""Keys of `prune: {method: nvit}` and of `model`: contradictions that the text of a recipe decides."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.errors import RecipeError
from vitslim.recipe import check_order, validate


def problems(model: dict[str, Any] | None = None, **keys: Any) -> dict[str, str]:
    document = {
        "name": "small",
        "model": {"timm": "deit_tiny_patch16_224"} if model is None else model,
        "data": {"kind": "digits"},
        "stages": [{"prune": {"method": "nvit", "budget": {"macs": 0.5}, **keys}}, "export"],
        "report": {"backends": ["onnxruntime:cpu"]},
    }
    return {problem.where: problem.message for problem in check_order(validate(document, "test"))[0]}


def test_the_defaults_are_published_and_legal() -> None:
    assert problems() == {}


@pytest.mark.parametrize(
    ("keys", "where", "message"),
    [
        ({"budget": {}}, "budget", "expected exactly one of macs, params and latency"),
        ({"budget": {"latency": 0.5}}, "budget.table", "needs a latency table"),
        ({"snapshots": {"small": 0.3}}, "snapshots.small", "got 0.3, which is not above the budget of 0.5"),
        ({"measure": True}, "measure", "the budget limits macs"),
        ({"eta_rescale": False}, "eta_rescale", "the budget limits macs"),
        ({"structures": ["mlp", "mlp"]}, "structures", "listed twice"),
        ({"update_weights": False, "train": {"ema": 0.9}}, "train.ema", "trains none"),
        ({"teacher": "nobody"}, "teacher", "expected the name of an earlier stage"),
        ({"label_teacher": {"timm": "regnety_160"}, "loss": {"hard": 0}}, "label_teacher", "part of the hard loss"),
    ],
)
def test_contradictions(keys: dict[str, Any], where: str, message: str) -> None:
    found = problems(**keys)
    assert message in found[f"stages.0.prune.{where}"]


@pytest.mark.parametrize(
    ("snapshots", "where", "message"),
    [
        ({"h:00.5": None}, "snapshots", "got the name 'h:00.5', expected a mapping of names"),
        ({"Half": 0.7}, "snapshots", "got the name 'Half'"),
        ({"half": "abc"}, "snapshots.half", "got 'abc', expected a number above 0"),
        ({"half": None}, "snapshots.half", "got null"),
        ({"half": 1.5}, "snapshots.half", "got 1.5"),
        (7, "snapshots", "got 7, expected a mapping of names"),
    ],
)
def test_snapshots_have_names_and_fractions(snapshots: Any, where: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        problems(snapshots=snapshots)
    (found,) = caught.value.problems
    assert found.where == f"stages.0.prune.{where}" and message in found.message


@pytest.mark.parametrize("embed", [100, 56, 4096])
def test_the_width_of_a_revit_is_a_multiple_of_eight(embed: int) -> None:
    with pytest.raises(RecipeError) as caught:
        problems({"revit": {"embed": embed}})
    (found,) = caught.value.problems
    assert found.where == "model.revit.embed"
    assert found.message == f"got {embed}, expected an integer from 64 to 2048, a multiple of 8"


def test_a_model_is_a_timm_model_or_a_revit() -> None:
    both = {"timm": "deit_tiny_patch16_224", "revit": {"embed": 384}}
    assert "expected one of them" in problems(both)["model.revit"]
    assert problems({"revit": {"embed": 384}}) == {}
    assert "random weights" in problems({"revit": {"embed": 384}, "checkpoint": "w.safetensors"})["model.checkpoint"]
