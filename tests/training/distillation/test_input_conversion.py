"""A teacher of another image size and normalization sees the same images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from vitslim.data import Dataset
from vitslim.graph.model_graph import ModelGraph, ModelSource, Preprocessing
from vitslim.progress import Silent
from vitslim.recipe.preprocessing import PreprocessingConfig
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Loss, TeacherModel
from vitslim.recipe.train import Train
from vitslim.training.distillation import train_with_teacher
from vitslim.training.distillation.input_conversion import describe_conversion, input_conversion
from vitslim.training.distillation.teachers import differences, teacher_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def source(size: int, mean: tuple[float, ...] = (0.5,) * 3, std: tuple[float, ...] = (0.5,) * 3) -> ModelSource:
    return ModelSource("test_vit", {}, (3, size, size), 10, Preprocessing(mean, std, "bicubic", 0.9))


def normalized(pixels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_another_normalization_is_replaced() -> None:
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    convert = input_conversion(source(16), source(16, MEAN, STD))
    torch.testing.assert_close(convert(normalized(pixels, (0.5,) * 3, (0.5,) * 3)), normalized(pixels, MEAN, STD))


def test_another_size_is_resized_before_it_is_normalized() -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = input_conversion(source(16), source(24, MEAN, STD))(normalized(pixels, (0.5,) * 3, (0.5,) * 3))
    resized = functional.interpolate(pixels, (24, 24), mode="bicubic", antialias=True)
    torch.testing.assert_close(found, normalized(resized, MEAN, STD), atol=1e-5, rtol=1e-5)


def test_equal_inputs_are_the_same_tensor() -> None:
    images = torch.rand(1, 3, 16, 16)
    assert input_conversion(source(16), source(16))(images) is images
    assert describe_conversion(source(16), source(16)) == ""


def test_classes_and_channels_are_compared() -> None:
    teacher = replace(source(16), classes=7, image=(1, 16, 16))
    assert list(differences(teacher, source(32))) == [
        "the teacher test_vit has 7 classes, the model has 10 classes",
        "the teacher test_vit has 1 image channels, the model has 3 image channels",
    ]


def test_the_keys_of_a_teacher_decide_on_its_input() -> None:
    teacher = TeacherModel(
        timm="test_vit",
        kwargs={"img_size": 48, "num_classes": 10},
        preprocessing=PreprocessingConfig(mean=(0.1,), std=(2.0,)),
    )
    found = teacher_source(teacher)
    assert (found.image, found.classes, found.preprocessing.mean) == ((3, 48, 48), 10, (0.1,) * 3)


def test_a_student_learns_from_a_teacher_of_another_size(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    teacher = TeacherModel(timm="test_vit", kwargs={"img_size": 48, "num_classes": 10})
    config = Distill(
        teacher=teacher, loss=Loss(hard=0, soft=1), train=Train(epochs=1, batch=32, images=32, device="cpu")
    )
    note, metrics = train_with_teacher(tiny_graph, config, some_digits, {}.__getitem__, 0, Silent())
    assert "images for test_vit are resized to 48 x 48" in note.reason
    assert metrics["steps"] == 1
