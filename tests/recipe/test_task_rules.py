"""Keys that the task of a model excludes, as far as the text of a recipe decides them, and the defaults of a task."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.recipe import check_order, validate
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Distill
from vitslim.recipe.task_rules import stated_task, task_problems, with_task

HEADLESS = {"timm": "vit_tiny_patch16_224", "kwargs": {"num_classes": 0}}
BACKBONE = {"timm": "convnext_atto", "kwargs": {"features_only": True, "out_indices": [0, 1]}}
TRAIN = {"epochs": 1}


def recipe(*stages: Any, model: Any = HEADLESS, gates: Any = None) -> Recipe:
    document = {
        "name": "t",
        "model": model,
        "data": {"kind": "digits"},
        "stages": [*stages, "export"],
        "gates": gates or {},
    }
    return validate(document, "t")


def where(found: Recipe) -> list[str]:
    return [problem.where for problem in check_order(found)[0]]


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (HEADLESS, "features"),
        (BACKBONE, "features"),
        ({"timm": "vit_tiny_patch16_224"}, None),
        ({"timm": "vit_tiny_patch16_224", "task": "multilabel"}, "multilabel"),
    ],
)
def test_the_arguments_of_a_model_state_its_task(model: Any, task: str | None) -> None:
    assert stated_task(recipe(model=model).model) == task


@pytest.mark.parametrize(
    ("keys", "kwargs"),
    [
        ({"task": "classify"}, {"num_classes": 0}),
        ({"task": "multilabel"}, {"features_only": True}),
        ({"task": "features"}, {"num_classes": 10}),
    ],
)
def test_a_task_that_contradicts_the_arguments_is_refused(keys: Any, kwargs: Any) -> None:
    model = {"timm": "vit_tiny_patch16_224", "kwargs": kwargs, **keys}
    assert where(recipe(model=model)) == ["model.task"]


@pytest.mark.parametrize(
    ("model", "gate"),
    [
        (HEADLESS, {"top1_min": 50.0}),
        (HEADLESS, {"top1_drop_max": 1.0}),
        (HEADLESS, {"map_min": 50.0}),
        ({"timm": "x", "task": "classify"}, {"cosine_min": 0.9}),
        ({"timm": "x", "task": "classify"}, {"neighbor_agreement_min": 90.0}),
        ({"timm": "x", "task": "multilabel"}, {"top1_min": 50.0}),
        (BACKBONE, {"neighbor_agreement_min": 90.0}),
    ],
)
def test_gates_of_other_tasks_are_refused(model: Any, gate: dict[str, float]) -> None:
    assert where(recipe(model=model, gates=gate)) == [f"gates.{next(iter(gate))}"]


@pytest.mark.parametrize(
    ("model", "gates"),
    [
        (HEADLESS, {"cosine_min": 0.99, "neighbor_agreement_min": 95.0, "size_ratio_min": 2.0}),
        (BACKBONE, {"cosine_min": 0.99}),
        ({"timm": "x", "task": "multilabel"}, {"map_min": 50.0}),
        ({"timm": "x"}, {"top1_min": 50.0}),
    ],
)
def test_gates_of_the_task_are_allowed(model: Any, gates: dict[str, float]) -> None:
    assert where(recipe(model=model, gates=gates)) == []


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ({"distill": {"loss": {"hard": 1.0}}}, "distill.loss.hard"),
        ({"distill": {"loss": {"soft": 0.0}}}, "distill.loss"),
        ({"distill": {"teacher": "none"}}, "distill.teacher"),
        ({"distill": {"teacher": ["dense", "previous"]}}, "distill.teacher"),
        ({"distill": {"labels": "teacher"}}, "distill.labels"),
        ({"distill": {"label_teacher": {"timm": "deit_tiny_patch16_224"}}}, "distill.label_teacher"),
        ({"distill": {"train": {"label_smoothing": 0.1}}}, "distill.train.label_smoothing"),
        ({"distill": {"train": {"mixup": 0.5}}}, "distill.train.mixup"),
        ({"distill": {"features": {"only_agreeing": True}}}, "distill.features.only_agreeing"),
        ({"quantize": {"method": "qat", "loss": {"hard": 1.0}}}, "quantize.loss.hard"),
        ({"prune": {"method": "nvit"}}, "prune.method"),
    ],
)
def test_training_of_a_feature_extractor_has_no_labels(stage: Any, key: str) -> None:
    assert where(recipe(stage)) == [f"stages.0.{key}"]


@pytest.mark.parametrize(
    "stage", ["distill", {"distill": {"loss": {"hard": 0.0, "feature": 1.0}}}, {"quantize": {"method": "qat"}}]
)
def test_distillation_of_features_is_allowed(stage: Any) -> None:
    assert where(recipe(stage)) == []


def test_tokens_of_maps_cannot_be_squeezed() -> None:
    stage = {"token-squeeze": {"method": "etps", "blocks": [0]}}
    assert where(recipe(stage, model=BACKBONE)) == ["stages.0.token-squeeze"]
    assert where(recipe(stage)) == []


def test_the_default_loss_of_a_feature_extractor_has_no_labels() -> None:
    distill, chosen, _ = with_task(
        recipe("distill", {"distill": {"name": "b", "loss": {"hard": 0.5}}}), "features"
    ).stages
    assert isinstance(distill, Distill)
    assert isinstance(chosen, Distill)
    assert (distill.loss.hard, distill.loss.soft, distill.features.only_agreeing) == (0, 1, False)
    assert chosen.loss.hard == 0.5
    unchanged = with_task(recipe("distill", model={"timm": "x"}), "classify")
    assert unchanged.model.task == "classify"
    assert unchanged.stages[0].loss.hard == 1  # type: ignore[attr-defined]


def test_messages_name_the_gates_of_the_task() -> None:
    (problem,) = task_problems(recipe(gates={"top1_min": 50.0}), "features")
    assert problem.message == (
        "the gate does not apply to `task: features`, whose gates are cosine_min, neighbor_agreement_min"
    )
    assert problem.hint == "remove `top1_min`"
