"""Contradictions among the keys of stages that train."""

from __future__ import annotations

import re
from typing import Any

import pytest

from vitslim.recipe import check_order, validate

TEACHERS = "allowed: none, previous, dense"


def errors_of(*stages: Any) -> dict[str, tuple[str, str]]:
    document = {"name": "test", "model": {"timm": "x", "checkpoint": "w"}, "data": {"kind": "digits"},
                "stages": [*stages, "export"]}  # fmt: skip
    return {problem.where: (problem.message, problem.hint) for problem in check_order(validate(document))[0]}


@pytest.mark.parametrize(
    ("keys", "where", "message", "hint"),
    [
        ({"loss": {"hard": 0, "soft": 0}}, "loss", "every term .* zero$", "name a teacher"),
        ({"teacher": "none", "loss": {"hard": 0, "soft": 1}}, "loss", "zero or needs a teacher", "`hard` above zero"),
        ({"teacher": "none", "loss": {"hard": 0, "feature": 1}}, "loss", "zero or needs a teacher", "`hard`"),
        ({"teacher": "none", "labels": "teacher"}, "labels", "needs a teacher", "teacher: dense"),
        ({"train": {"mix": True}}, "train.mix", "no label", "labels: teacher"),
        ({"teacher": "none", "train": {"mix": True}}, "train.mix", "no label", "labels: teacher"),
        ({"teacher": "densee"}, "teacher", "got 'densee'", "dense"),
        ({"teacher": "later"}, "teacher", "does not come before", TEACHERS),
        ({"teacher": {"timm": "vit", "checkpoint": "package:a"}}, "teacher.checkpoint", "package:", "safetensors"),
    ],
)
@pytest.mark.parametrize("kind", ["distill", "quantize"])
def test_contradictions_are_refused_before_the_run(
    kind: str, keys: dict[str, Any], where: str, message: str, hint: str
) -> None:
    method = {"distill": "distill", "quantize": "qat"}[kind]
    stage = {kind: {"method": method, "name": "later", **keys}}
    ((found, (said, advice)),) = errors_of(stage).items()
    assert found == f"stages.0.{kind}.{where}"
    assert re.search(message, said)
    assert hint in advice


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"teacher": "none", "loss": {"hard": 1, "soft": 0}},
        {"labels": "teacher", "train": {"mix": True}},
        {"loss": {"hard": 0, "soft": 1}, "train": {"mix": True}},
    ],
)
def test_losses_with_a_target_are_accepted(keys: dict[str, Any]) -> None:
    assert errors_of({"distill": keys}) == {}


@pytest.mark.parametrize(
    ("stages", "where", "message"),
    [
        ([{"quantize": {"method": "qat", "feature_weight": {}}}], "stages.0.quantize.feature_weight", "weight zero"),
        ([{"distill": {"loss": {"feature": 1}, "name": "sparse"}},
          {"quantize": {"method": "qat", "loss": {"feature": 1}, "feature_weight": {"stage": "sparce"}}}],
         "stages.1.quantize.feature_weight.stage", "no stage 'sparce'"),
        ([{"quantize": {"method": "qat"}}, "distill"], "stages.1.distill", "training must come before quantize"),
        ([{"quantize": {"method": "qat"}}, "quantize"], "stages.1.quantize", "ptq comes after qat"),
        ([{"prune": {"method": "two-four"}}, {"prune": {"method": "depgraph"}}], "stages.1.prune",
         "break the pattern of the mask"),
    ],
)  # fmt: skip
def test_wrong_feature_weights_and_orders_are_refused(stages: list[Any], where: str, message: str) -> None:
    errors = errors_of(*stages)
    assert list(errors) == [where]
    assert message in errors[where][0]
