"""`plan` refuses what the images or a teacher decide, and a run warns about a dense model near chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vitslim
from vitslim.data import Dataset
from vitslim.errors import InputError, Problem, RecipeError
from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline import dense_model
from vitslim.pipeline.problems.data_problems import data_problems, list_images
from vitslim.pipeline.run.messages.run_warnings import accuracy_warnings, chance
from vitslim.progress import Silent
from vitslim.recipe import validate
from vitslim.recipe.schema import Recipe
from vitslim.results import Accuracy, Cost, StageRecord

Make = Callable[..., Recipe]
COST = Cost(params=1, macs=1, bops=1, weight_bytes=1, device_bytes=1)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Images without labels in train/ and val/."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in range(4):
            Image.new("RGB", (40, 40), (30 * number, 90, 10)).save(tmp_path / split / f"{number}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def traced(tiny_graph: ModelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a model that is traced already."""
    monkeypatch.setattr(dense_model, "trace_model", lambda *_: tiny_graph)


@pytest.fixture
def make(plain: Path, tiny_kwargs: dict[str, Any]) -> Make:
    """A recipe for these images; arguments are stages, and further top-level keys."""

    def recipe(*stages: Any, **keys: Any) -> Recipe:
        return validate({
            "name": "plain", "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
            "data": {"kind": "imagefolder", "root": str(plain)}, "stages": [*stages, "export"], **keys,
        })  # fmt: skip

    return recipe


def problems(recipe: Recipe) -> dict[str, str]:
    with pytest.raises(RecipeError) as error:
        vitslim.build_plan(recipe)
    assert all(problem.hint for problem in error.value.problems)
    return {problem.where: problem.message for problem in error.value.problems}


def test_everything_that_needs_labels_is_refused_at_once(make: Make) -> None:
    found = problems(
        make(
            {"prune": {"method": "depgraph", "importance": "taylor"}},
            {"distill": {"teacher": "dense"}},
            {"distill": {"teacher": "dense", "labels": "teacher", "train": {"mixup": 0.2}}},
            gates={"top1_drop_max": 1, "size_ratio_min": 1},
        )
    )
    assert list(found) == ["stages.0.prune", "stages.1.distill", "stages.2.distill", "gates.top1_drop_max"]
    assert "have no labels, and `importance: taylor` is from the loss on them" in found["stages.0.prune"]
    assert "`loss.hard: 1` is the cross-entropy" in found["stages.1.distill"]
    assert "mixup" in found["stages.2.distill"]


def test_stages_without_labels_are_planned(make: Make) -> None:
    plan = vitslim.build_plan(
        make(
            {"prune": {"method": "depgraph", "importance": "magnitude_l2"}},
            {"distill": {"teacher": "dense", "labels": "teacher"}},
            {"quantize": {"method": "ptq"}},
        )
    )
    assert len(plan.rows) == 5


def test_a_missing_folder_is_refused(make: Make, plain: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        vitslim.build_plan(make(data={"kind": "imagefolder", "root": str(plain / "nowhere")}))


def test_a_teacher_of_other_classes_and_channels_is_refused_with_both_numbers(make: Make) -> None:
    classes = {"timm": "test_vit", "kwargs": {"num_classes": 7}}
    channels = {"timm": "test_vit", "kwargs": {"num_classes": 10, "in_chans": 1}}
    digits = {"kind": "digits"}
    found = problems(make({"distill": {"teacher": ["dense", classes], "label_teacher": channels}}, data=digits))
    assert found == {
        "stages.0.distill.teacher.1": "the teacher test_vit has 7 classes, the model has 10 classes",
        "stages.0.distill.label_teacher": "the teacher test_vit has 1 image channels, the model has 3 image channels",
    }


def test_a_teacher_of_another_size_is_planned(make: Make) -> None:
    teacher = {"timm": "test_vit", "kwargs": {"num_classes": 10}}
    assert vitslim.build_plan(make({"distill": {"teacher": teacher}}, data={"kind": "digits"})).rows


@pytest.mark.parametrize(
    ("top1", "checkpoint", "warns"),
    [(0.1, "w.pth", True), (0.18, "w.pth", True), (0.4, "w.pth", False), (0.1, None, False)],
)
def test_a_checkpoint_near_chance_gives_a_warning(make: Make, top1: float, checkpoint: str | None, warns: bool) -> None:
    recipe = make(model={"timm": "vit_tiny_patch16_224", "checkpoint": checkpoint})
    val = labeled(tuple(range(10)) * 3)
    record = StageRecord(
        name="00-dense", kind="dense", method="", seconds=0, key="", cost=COST, onnx_bytes=1,
        accuracies=(Accuracy(dataset="val", metrics={"top1": top1}, n=30),),
    )  # fmt: skip
    found = accuracy_warnings(recipe, record, val)
    assert bool(found) == warns
    for word in ("data.classes", "model.preprocessing", "10.0 %") if warns else ():
        assert word in found[0]


def test_chance_is_that_of_the_most_common_class() -> None:
    assert chance(labeled((0, 1))) == 0.5
    assert chance(labeled((0, 1, 1, 1))) == 0.75


def test_labels_must_fit_the_task(make: Make, plain: Path) -> None:
    table = plain / "images.csv"
    table.write_text("path,labels,split\ntrain/0.png,1;2,train\nval/0.png,3,val\n")
    data = {"kind": "imagefolder", "root": str(table)}
    assert "set model.task" in str(problems_of_task(make(data=data))[0].hint)
    table.write_text("path,label,split\ntrain/0.png,1,train\nval/0.png,3,val\n")
    model = {"timm": "vit_tiny_patch16_224", "task": "multilabel"}
    assert "have one label each" in problems_of_task(make(data=data, model=model))[0].message


def problems_of_task(recipe: Recipe) -> tuple[Problem, ...]:
    task = recipe.model.task or "classify"
    resolved = recipe.model_copy(update={"model": recipe.model.model_copy(update={"task": task})})
    return data_problems(resolved, list_images(recipe.data, Silent()))


class NoImages:
    """A source of labels only."""

    workers = 0

    def pixels(self, index: int, augment_seed: tuple[int, ...] | None) -> torch.Tensor:
        raise NotImplementedError


def labeled(labels: tuple[int, ...]) -> Dataset:
    return Dataset("numbers", "val", NoImages(), tuple(range(len(labels))), labels, (), "digest")
