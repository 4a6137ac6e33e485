"""Accepted and refused teachers, and their logits."""

from __future__ import annotations

import pytest
import torch

from vitslim.data import Dataset, batches
from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Features, Loss, TeacherModel
from vitslim.recipe.train import Train
from vitslim.training import Batch
from vitslim.training.distillation import train_with_teacher
from vitslim.training.distillation.teachers import averaged, load_teacher, teacher_function
from vitslim.training.forms.taps import LogitsAndFeatures
from vitslim.training.losses import soft_loss

QUICK = Train(epochs=1, batch=32, images=32)


def test_a_teacher_is_resolved_by_name(tiny_graph: ModelGraph, teacher: ModelGraph) -> None:
    graphs = {"dense": teacher, "small": tiny_graph}
    assert load_teacher("dense", tiny_graph.source, graphs.__getitem__) is teacher
    assert load_teacher("small", tiny_graph.source, graphs.__getitem__) is tiny_graph


def test_a_timm_teacher_of_other_classes_is_refused(tiny_graph: ModelGraph) -> None:
    with pytest.raises(StageError, match="test_vit has 1000 classes, the model has 10") as caught:
        load_teacher(TeacherModel(timm="test_vit"), tiny_graph.source, {}.__getitem__)
    assert caught.value.hint


def test_stored_and_live_teacher_logits_are_the_same(teacher: ModelGraph, some_digits: Dataset) -> None:
    dataset = some_digits.balanced(70)
    trains = [Train(augment=augment, batch=30, device="cpu") for augment in ("none", "light")]
    functions = [
        teacher_function(teacher, teacher.source, (), Distill(train=train), dataset, Silent()) for train in trains
    ]
    loader = batches(dataset, 16, shuffle_seed=5)
    for positions, (images, labels) in zip(loader.positions, loader, strict=True):
        stored, live = (answer(Batch(images, labels, torch.tensor(positions))).logits for answer in functions)
        torch.testing.assert_close(stored, live, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("augment", ["none", "light"])
def test_a_faster_runtime_answers_in_place_of_the_graph(
    teacher: ModelGraph, some_digits: Dataset, augment: str
) -> None:
    dataset, asked = some_digits.balanced(40), []

    def forward(images: torch.Tensor) -> torch.Tensor:
        asked.append(len(images))
        return 2 * images.flatten(1)[:, :10]

    config = Distill(train=Train(augment=augment, batch=30, device="cpu"))
    answer = teacher_function(teacher, teacher.source, (), config, dataset, Silent(), forward)
    images, labels = next(iter(batches(dataset, 8)))
    found = answer(Batch(images, labels, torch.arange(8))).logits
    torch.testing.assert_close(found, 2 * images.flatten(1)[:, :10])
    assert asked == ([30, 10] if augment == "none" else [8])


def test_a_teacher_with_features_of_another_width_is_refused(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    wide = trace_timm(tiny_graph.source.timm, {**tiny_graph.source.kwargs, "embed_dim": 96})
    config = Distill(loss=Loss(feature=5), train=QUICK)
    with pytest.raises(StageError, match=r"features of blocks\.1 have shape \(17, 64\) .* \(17, 96\)") as caught:
        train_with_teacher(tiny_graph, config, some_digits, lambda _: wide, 0, Silent())
    assert "loss.feature" in caught.value.hint


def test_a_teacher_without_a_compared_block_is_refused(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    shallow = trace_timm(tiny_graph.source.timm, {**tiny_graph.source.kwargs, "depth": 1})
    config = Distill(loss=Loss(feature=5), train=QUICK)
    with pytest.raises(StageError, match=r"the teacher has no block 'blocks\.1'"):
        train_with_teacher(tiny_graph, config, some_digits, lambda _: shallow, 0, Silent())


def test_a_teacher_that_no_loss_uses_is_not_loaded(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    config = Distill(teacher="dense", loss=Loss(hard=1, soft=0), train=QUICK)
    note, metrics = train_with_teacher(tiny_graph, config, some_digits, {}.__getitem__, 0, Silent())
    assert note.result.endswith("teacher none")
    assert metrics["steps"] == 1


def test_two_teachers_give_the_gradient_of_the_mean_of_their_soft_losses() -> None:
    logits = [torch.randn(5, 7), torch.randn(5, 7)]
    features = torch.randn(5, 3)
    functions = [lambda _, one=one: LogitsAndFeatures(one, (features,) if one is logits[0] else ()) for one in logits]
    batch = Batch(torch.zeros(5, 1), torch.zeros(5, dtype=torch.int64), torch.arange(5))
    answer = averaged(functions, 3.0)(batch)
    assert answer.features[0] is features
    students = [torch.ones(5, 7, requires_grad=True) for _ in range(2)]
    soft_loss(students[0], answer.logits, 3.0).backward()
    (sum(soft_loss(students[1], one, 3.0) for one in logits) / 2).backward()
    torch.testing.assert_close(students[0].grad, students[1].grad)
    assert averaged(functions[:1], 3.0) is functions[0]


def test_a_student_learns_from_two_teachers(tiny_graph: ModelGraph, teacher: ModelGraph, some_digits: Dataset) -> None:
    """The features are those of the first teacher, which has the student's weights."""
    graphs = {"dense": tiny_graph.copy(), "wide": teacher}
    config = Distill(
        teacher=("dense", "wide"),
        loss=Loss(hard=0, soft=1, feature=1),
        features=Features(only_agreeing=False),
        train=QUICK.model_copy(update={"lr": 1e-9}),
    )
    note, metrics = train_with_teacher(tiny_graph, config, some_digits, graphs.__getitem__, 0, Silent())
    assert note.result.endswith("teacher dense and wide")
    assert metrics["feature_loss.blocks.1"] == pytest.approx(0, abs=1e-6)
    assert metrics["loss_first"] > 1e-4
