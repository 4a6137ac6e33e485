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
        ({"train": {"lr": 1e-5, "min_lr": 1e-4}}, "train.min_lr", "got 0.0001, .* above .* 1e-05", "`min_lr`"),
        ({"train": {"mixup": 0.8, "batch": 33}}, "train.batch", "even batch, got 33", "batch: 34"),
        ({"train": {"cutmix": 1, "batch": 1}}, "train.batch", "even batch, got 1", "batch: 2"),
        ({"teacher": "densee"}, "teacher", "got 'densee'", "dense"),
        ({"teacher": "later"}, "teacher", "does not come before", TEACHERS),
        ({"teacher": ["dense", "densee"]}, "teacher.1", "got 'densee'", "dense"),
        ({"teacher": ["dense", "none"]}, "teacher.1", "cannot contain none", "remove"),
        ({"teacher": ["dense", "dense"]}, "teacher.1", "each teacher once", "remove"),
        (
            {"teacher": ["dense", "previous", {"timm": "vit"}]},
            "teacher",
            "a list of 3 teachers, expected at most 2",
            "remove",
        ),
        (
            {"teacher": ["dense", {"timm": "a", "checkpoint": "package:a"}]},
            "teacher.1.checkpoint",
            "package:",
            "path of a checkpoint",
        ),
        (
            {"teacher": {"timm": "vit", "checkpoint": "package:a"}},
            "teacher.checkpoint",
            "package:",
            "path of a checkpoint",
        ),
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


def test_contradictions_of_sparse_training_are_refused_too() -> None:
    errors = errors_of({"prune": {"method": "depgraph", "group_sparsity": {"train": {"mixup": 1, "batch": 3}}}})
    assert list(errors) == ["stages.0.prune.group_sparsity.train.batch"]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"teacher": "none", "loss": {"hard": 1, "soft": 0}},
        {"teacher": "none", "train": {"mixup": 0.8, "cutmix": 1}},
        {"labels": "teacher", "train": {"mixup": 1}},
        {"teacher": ["dense", {"timm": "vit_tiny", "checkpoint": "a.safetensors"}]},
        {"train": {"batch": 33, "ema": 0.9999, "drop_path": 0.1, "backbone_lr": 0.01, "lr": 1e-3, "min_lr": 1e-5}},
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
