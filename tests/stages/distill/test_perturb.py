"""`perturb`: images on which a teacher sees more than the classes of their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitslim.data import DataModule, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, Qat
from vitslim.recipe.teaching import Loss, Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill.perturb import perturbed
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.quantize.qat.stage import QatStage

SOFT = Loss(hard=0, soft=1)


@pytest.fixture
def digits(tiny_graph: ModelGraph) -> DataModule:
    return load_data(Data(kind="digits", eval_images=60), tiny_graph.source, 0)


def trained(stage: DistillStage | QatStage, student: ModelGraph, teacher: ModelGraph, data: DataModule) -> StageResult:
    return stage.apply(student, StageContext(data, 0, Silent(), {"dense": StageResult(teacher)}.__getitem__, Path()))


def test_a_linear_teacher_moves_images_along_its_weights() -> None:
    """The gradient of cross-entropy towards c is `W^T (softmax(W x) - onehot(c))`."""
    torch.manual_seed(3)
    weight = torch.randn(5, 12)
    images = torch.randn(6, 3, 2, 2)
    torch.manual_seed(0)
    moved = perturbed(images, lambda x: x.flatten(start_dim=1) @ weight.T, 0.5)
    torch.manual_seed(0)
    classes, sizes = torch.randint(5, (6,)), 0.5 * torch.rand(6)
    wrong = (images.flatten(start_dim=1) @ weight.T).softmax(dim=1) - torch.eye(5)[classes]
    gradient = wrong @ weight
    expected = -sizes[:, None] * gradient / gradient.std(dim=1, keepdim=True)
    torch.testing.assert_close((moved - images).flatten(start_dim=1), expected)


def test_what_is_added_is_no_larger_than_asked_and_shows_other_classes(
    tiny_graph: ModelGraph, digits: DataModule
) -> None:
    images = next(iter(digits.train.balanced(64).batches(64)))[0]
    module = tiny_graph.module.eval()
    torch.manual_seed(0)
    moved = perturbed(images, module, 0.3)
    added = (moved - images).flatten(start_dim=1).std(dim=1)
    assert 0.25 < float(added.max()) <= 0.3001
    assert float(added.min()) < 0.05
    torch.manual_seed(0)
    wanted = torch.randint(10, (64,))
    with torch.no_grad():
        before, after = (module(x).log_softmax(dim=1)[range(64), wanted] for x in (images, moved))
    assert (after > before).float().mean() > 0.9
    assert after.mean() > before.mean() + 0.2


def test_an_image_that_does_not_matter_stays() -> None:
    images = torch.randn(2, 1, 2, 2)
    moved = perturbed(images, lambda x: (x * torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)).flatten(start_dim=1), 1.0)
    assert moved.isfinite().all()
    assert not torch.equal(moved[0], images[0])
    assert torch.equal(moved[1], images[1])


def test_gradients_of_the_teacher_are_found_where_none_are_kept() -> None:
    images, teacher = torch.randn(2, 1, 2, 2), torch.nn.Linear(4, 3)
    with torch.no_grad():
        moved = perturbed(images, lambda x: teacher(x.flatten(start_dim=1)), 1.0)
    assert not torch.equal(moved, images)
    assert not moved.requires_grad
    assert teacher.weight.grad is None


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_student_and_teacher_see_the_same_perturbed_images(
    tiny_graph: ModelGraph, digits: DataModule, augment: str
) -> None:
    """A student that is its teacher has nothing to learn; with logits stored for the plain images it would."""
    train = Train(epochs=1, batch=32, lr=1e-9, images=64, augment=augment)
    for loss in (SOFT, Loss(hard=0, soft=1, feature=1)):
        stage = DistillStage(Distill(loss=loss, train=train, perturb=0.5))
        assert trained(stage, tiny_graph, tiny_graph, digits).metrics["loss_first"] == pytest.approx(0, abs=1e-5)


def test_perturbed_training_is_another_and_leaves_the_teacher(tiny_graph: ModelGraph, digits: DataModule) -> None:
    teacher = tiny_graph.copy()
    with torch.no_grad():
        teacher.parameters()["head.weight"].mul_(1.5)
    before = {name: weight.detach().clone() for name, weight in teacher.parameters().items()}
    train = Train(epochs=1, batch=32, images=64)
    losses = [
        trained(DistillStage(Distill(loss=SOFT, train=train, perturb=most)), tiny_graph, teacher, digits).metrics
        for most in (0.0, 0.5, 0.5)
    ]
    assert losses[0]["loss_last"] != losses[1]["loss_last"]
    assert losses[1]["loss_last"] == losses[2]["loss_last"]
    for name, weight in teacher.parameters().items():
        assert torch.equal(weight, before[name])
        assert weight.requires_grad
        assert weight.grad is None


def test_quantization_aware_training_takes_it_too(tiny_graph: ModelGraph, digits: DataModule) -> None:
    train, losses = Train(epochs=1, batch=32, images=64), []
    for most in (0.0, 0.5):
        stage = QatStage(Qat(method="qat", teacher="dense", loss=SOFT, perturb=most, train=train))
        result = trained(stage, tiny_graph, tiny_graph, digits)
        assert stage.ensures(tiny_graph, result.graph) == []
        losses.append(result.metrics["loss_first"])
    assert losses[0] != losses[1]


def test_without_a_teacher_there_are_no_classes_to_move_towards() -> None:
    numbers = ModelSketch({}, {}, {}, (), {}, ("blocks.0",), {}, 1)
    (problem,) = DistillStage(Distill(teacher="none", perturb=0.1)).requires(numbers)
    assert (problem.where, bool(problem.hint)) == ("perturb", True)
    assert DistillStage(Distill(perturb=0.1)).requires(numbers) == []
