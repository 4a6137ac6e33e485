from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitslim.data import DataModule, load_data
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, TwoFour
from vitslim.recipe.stages.training import Loss, TeacherModel
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.training import agreement, predict
from vitslim.training.device import device_name, find_device

QUICK = Train(epochs=2, batch=32, lr=1e-3, images=96)


@pytest.fixture
def digits(tiny_graph: ModelGraph) -> DataModule:
    return load_data(Data(kind="digits", eval_images=60), tiny_graph.source, 0)


def context(data: DataModule, teacher: ModelGraph, folder: Path) -> StageContext:
    return StageContext(data, 0, Silent(), {"dense": StageResult(teacher)}.__getitem__, folder)


def distilled(stage: DistillStage, graph: ModelGraph, stage_context: StageContext) -> StageResult:
    """Apply a stage and check its postconditions, as the runner does."""
    result = stage.apply(graph, stage_context)
    assert stage.ensures(graph, result.graph) == []
    return result


def weights(graph: ModelGraph) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in graph.parameters().values()]


@pytest.mark.parametrize("augment", ["none", "light"])
def test_a_student_approaches_its_teacher(
    tiny_graph: ModelGraph, teacher: ModelGraph, digits: DataModule, tmp_path: Path, augment: str
) -> None:
    config = Distill(
        loss=Loss(hard=0, soft=1),
        temperature=2.0,
        train=Train(epochs=12, batch=32, lr=2e-3, images=96, augment=augment),
    )
    student_before, teacher_before = weights(tiny_graph), weights(teacher)
    result = distilled(DistillStage(config), tiny_graph, context(digits, teacher, tmp_path))
    assert result.metrics["loss_last"] < 0.7 * result.metrics["loss_first"]
    assert result.metrics["seconds"] > 0
    assert all(map(torch.equal, student_before, weights(tiny_graph)))
    assert all(map(torch.equal, teacher_before, weights(teacher)))
    target, *_ = predict(teacher.module, digits.val, 60, Silent(), "")
    start, *_ = predict(tiny_graph.module, digits.val, 60, Silent(), "")
    end, *_ = predict(result.graph.module, digits.val, 60, Silent(), "")
    assert agreement(end, target) > agreement(start, target)


def test_a_student_equal_to_its_teacher_has_loss_zero(
    tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    config = Distill(loss=Loss(hard=0, soft=1), train=Train(epochs=1, lr=1e-12, wd=0, images=96))
    result = distilled(DistillStage(config), tiny_graph, context(digits, tiny_graph, tmp_path))
    assert abs(result.metrics["loss_first"]) < 1e-6


def test_fine_tuning_needs_no_teacher_and_keeps_masks(
    tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    name = "blocks.1.mlp.fc2.weight"
    mask = torch.arange(tiny_graph.parameters()[name].shape[1]) % 4 < 2
    tiny_graph.masks[name] = mask.expand_as(tiny_graph.parameters()[name]).clone()
    with torch.no_grad():
        tiny_graph.parameters()[name].mul_(mask)
    no_teacher = StageContext(digits, 0, Silent(), {}.__getitem__, tmp_path)
    result = distilled(DistillStage(Distill(teacher="none", train=QUICK)), tiny_graph, no_teacher)
    trained = result.graph.parameters()[name].detach()
    assert (trained[:, ~mask] == 0).all()
    assert not torch.equal(trained, tiny_graph.parameters()[name])
    here = device_name(find_device(Train()))
    assert result.changes[0].result == f"trained 2 epochs on 96 images on {here} in float32, teacher none"


def test_feature_losses_are_recorded_and_masks_stay(tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path) -> None:
    stage_context = context(digits, tiny_graph, tmp_path)
    sparse = TwoFourStage(TwoFour(method="two-four", permute=("mlp", "v"))).apply(tiny_graph, stage_context).graph
    train = Train(epochs=2, batch=32, lr=1e-4, images=96)
    stage = DistillStage(Distill(loss=Loss(hard=1, soft=10, feature=5), labels="teacher", train=train))
    result = distilled(stage, sparse, stage_context)
    assert result.metrics["feature_loss.blocks.1"] > 0
    assert result.metrics["loss_last"] < result.metrics["loss_first"]
    assert result.graph.masks.keys() == sparse.masks.keys()


def test_a_moved_masked_weight_and_a_value_that_is_not_finite_are_reported(tiny_graph: ModelGraph) -> None:
    stage = DistillStage(Distill())
    after = tiny_graph.copy()
    after.masks["head.weight"] = torch.zeros_like(after.parameters()["head.weight"], dtype=torch.bool)
    with torch.no_grad():
        after.parameters()["norm.bias"][3] = float("nan")
    assert {problem.where for problem in stage.ensures(tiny_graph, after)} == {"head.weight", "norm.bias"}


def test_every_model_can_be_trained_and_keeps_its_shapes() -> None:
    sketch = ModelSketch({}, {}, {}, (), {}, ("blocks.0",), {}, 1)
    assert DistillStage(Distill()).requires(sketch) == []
    assert DistillStage(Distill()).estimate(sketch) is sketch


def test_the_teacher_sees_the_same_augmented_mixtures_as_the_student(
    tiny_graph: ModelGraph, teacher: ModelGraph, digits: DataModule, tmp_path: Path
) -> None:
    """A student that equals its teacher has loss zero on any images, as long as both see the same ones."""
    train = Train(epochs=1, batch=32, lr=1e-9, images=64, augment="strong", mixup=1.0)
    for loss in (Loss(hard=0, soft=1), Loss(hard=0, soft=1, feature=1)):
        stage = DistillStage(Distill(loss=loss, labels="teacher", train=train))
        metrics = stage.apply(teacher, context(digits, teacher, tmp_path)).metrics
        assert metrics["loss_first"] == pytest.approx(0, abs=1e-5)


def test_a_teacher_of_other_classes_is_refused(tiny_graph: ModelGraph, digits: DataModule, tmp_path: Path) -> None:
    stage = DistillStage(Distill(teacher=TeacherModel(timm="test_vit"), train=QUICK))
    with pytest.raises(StageError, match="test_vit has 1000 classes, the model has 10 classes") as caught:
        stage.apply(tiny_graph, context(digits, tiny_graph, tmp_path))
    assert caught.value.hint
