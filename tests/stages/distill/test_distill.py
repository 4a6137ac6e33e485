from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.data import DataModule, batches, load_data
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Loss, TeacherModel, Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.distill.teacher import ask
from vitslim.training import Batch, agreement, predict
from vitslim.training.device import device_name, find_device

QUICK = Train(epochs=2, batch=32, lr=1e-3, images=96)


@pytest.fixture
def digits(tiny_graph: ModelGraph) -> DataModule:
    return load_data(Data(kind="digits", eval_images=60), tiny_graph.source, 0)


def context(data: DataModule, teacher: ModelGraph, folder: Path) -> StageContext:
    return StageContext(data, 0, Silent(), {"dense": StageResult(teacher)}.__getitem__, folder)


def distilled(stage: DistillStage, graph: ModelGraph, where: StageContext) -> StageResult:
    """Apply a stage as the runner does, its promises included."""
    result = stage.apply(graph, where)
    assert stage.ensures(graph, result.graph) == []
    return result


def weights(graph: ModelGraph) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in graph.parameters().values()]


@pytest.fixture
def teacher(tiny_graph: ModelGraph) -> ModelGraph:
    """Another network than the student: every matrix is rolled by one row."""
    other = tiny_graph.copy()
    with torch.no_grad():
        for weight in other.module.parameters():
            weight.copy_(weight.roll(1, 0) * 1.5)
    return other


@pytest.mark.parametrize("augment", ["none", "light"])
def test_student_learns_what_the_teacher_says(
    tiny_graph: ModelGraph, teacher: ModelGraph, digits: DataModule, tmp_path: Path, augment: str
) -> None:
    config = Distill(
        loss=Loss(hard=0, soft=1),
        temperature=2.0,
        train=Train(epochs=12, batch=32, lr=2e-3, images=96, augment=augment),
    )
    before, taught = weights(tiny_graph), weights(teacher)
    result = distilled(DistillStage(config), tiny_graph, context(digits, teacher, tmp_path))
    assert result.metrics["loss_last"] < 0.7 * result.metrics["loss_first"]
    assert result.metrics["seconds"] > 0
    assert all(map(torch.equal, before, weights(tiny_graph)))
    assert all(map(torch.equal, taught, weights(teacher)))
    said, *_ = predict(teacher.module, digits.val, 60, Silent(), "")
    start, *_ = predict(tiny_graph.module, digits.val, 60, Silent(), "")
    end, *_ = predict(result.graph.module, digits.val, 60, Silent(), "")
    assert agreement(end, said) > agreement(start, said)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(
    tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    config = Distill(loss=Loss(hard=0, soft=1), train=Train(epochs=1, lr=1e-12, wd=0, images=96))
    result = distilled(DistillStage(config), tiny_graph, context(digits, tiny_graph, tmp_path))
    assert abs(result.metrics["loss_first"]) < 1e-6


def test_stored_and_live_teacher_logits_are_the_same(
    tiny_graph: ModelGraph, teacher: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    where = context(digits, teacher, tmp_path)
    dataset = digits.train.balanced(70)
    kinds = [
        ask(teacher, (), Distill(train=Train(augment=augment, batch=30, device="cpu")), dataset, where)
        for augment in ("none", "light")
    ]
    loader = batches(dataset, 16, shuffle_seed=5)
    for positions, (images, labels) in zip(loader.positions, loader, strict=True):
        stored, live = (says(Batch(images, labels, torch.tensor(positions))).logits for says in kinds)
        torch.testing.assert_close(stored, live, atol=1e-5, rtol=1e-5)


def test_fine_tuning_needs_no_teacher_and_keeps_masks(
    tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    name = "blocks.1.mlp.fc2.weight"
    mask = torch.arange(tiny_graph.parameters()[name].shape[1]) % 4 < 2
    tiny_graph.masks[name] = mask.expand_as(tiny_graph.parameters()[name]).clone()
    with torch.no_grad():
        tiny_graph.parameters()[name].mul_(mask)
    nobody = StageContext(digits, 0, Silent(), {}.__getitem__, tmp_path)
    result = distilled(DistillStage(Distill(teacher="none", train=QUICK)), tiny_graph, nobody)
    trained = result.graph.parameters()[name].detach()
    assert (trained[:, ~mask] == 0).all()
    assert not torch.equal(trained, tiny_graph.parameters()[name])
    here = device_name(find_device(Train()))
    assert result.changes[0].what == f"trained 2 epochs on 96 images on {here} in float32, teacher none"


def test_broken_promises_are_found(tiny_graph: ModelGraph) -> None:
    stage = DistillStage(Distill())
    after = tiny_graph.copy()
    after.masks["head.weight"] = torch.zeros_like(after.parameters()["head.weight"], dtype=torch.bool)
    with torch.no_grad():
        after.parameters()["norm.bias"][3] = float("nan")
    assert {problem.where for problem in stage.ensures(tiny_graph, after)} == {"head.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"loss": Loss(hard=0, soft=0)}, "loss"),
        ({"teacher": "none", "loss": Loss(hard=0, soft=1)}, "loss.hard"),
        ({"train": Train(mix=True)}, "train.mix"),
        ({"teacher": "none", "train": Train(mix=True)}, "train.mix"),
    ],
)
def test_losses_without_effect_are_refused_before_the_run(keys: dict[str, Any], where: str) -> None:
    numbers = ModelSketch({}, {}, {}, (), {}, ("blocks.0",), {}, 1)
    (problem,) = DistillStage(Distill(**keys)).requires(numbers)
    assert problem.where == where
    assert problem.hint
    assert DistillStage(Distill()).requires(numbers) == []
    assert DistillStage(Distill(labels="teacher", train=Train(mix=True))).requires(numbers) == []
    assert DistillStage(Distill()).estimate(numbers) is numbers


def test_mixtures_and_strong_variations_are_shown_to_the_teacher_too(
    tiny_graph: ModelGraph, teacher: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    """A student that is its teacher has nothing to learn, whatever both see."""
    train = Train(epochs=1, batch=32, lr=1e-9, images=64, augment="strong", mix=True)
    for loss in (Loss(hard=0, soft=1), Loss(hard=0, soft=1, feature=1)):
        stage = DistillStage(Distill(loss=loss, labels="teacher", train=train))
        metrics = stage.apply(teacher, context(digits, teacher, tmp_path)).metrics
        assert metrics["loss_first"] == pytest.approx(0, abs=1e-5)


def test_teacher_of_other_classes_is_refused(tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path) -> None:
    stage = DistillStage(Distill(teacher=TeacherModel(timm="test_vit"), train=QUICK))
    with pytest.raises(StageError, match="test_vit has 1000 classes, the student 10 classes") as caught:
        stage.apply(tiny_graph, context(digits, tiny_graph, tmp_path))
    assert caught.value.hint
