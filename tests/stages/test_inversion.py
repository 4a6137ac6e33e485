"""Images of classes that a training set lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from vitslim.data import DataModule, load_data
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill
from vitslim.recipe.teaching import Inversion, Loss, Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.distill import inversion
from vitslim.stages.distill.inversion import KEPT_FILE, inverted, with_inverted
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.distill.teaching import unlearnable

STRONG = Train(epochs=1, batch=32, images=60, augment="strong", mix=True)


@pytest.fixture
def digits(tiny_graph: ModelGraph) -> DataModule:
    return load_data(Data(kind="digits", eval_images=60), tiny_graph.source, 0)


@pytest.fixture
def teacher(tiny_graph: ModelGraph) -> ModelGraph:
    """Of weights so large that it says what it says with some certainty."""
    graph = tiny_graph.copy()
    with torch.no_grad():
        for name, weight in graph.parameters().items():
            weight.mul_(20 if name.startswith("head") else 3 if weight.ndim > 1 else 1)
    return graph


def test_images_move_towards_the_classes_that_were_asked_for(teacher: ModelGraph) -> None:
    """Each to its own: a network of random weights can be brought to say only some of its classes."""
    crops = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(20) % 10
    torch.manual_seed(0)
    images = inverted(teacher.module, crops, classes, steps=40, lr=0.02)
    with torch.no_grad():
        before, after = (cross_entropy(teacher.module(one), classes, reduction="none") for one in (crops, images))
    assert (after < before).all() and after.mean() < 0.8 * before.mean()
    assert images.shape == crops.shape and not images.requires_grad
    assert images.min() >= 0 and images.max() <= 1
    assert all(weight.grad is None for weight in teacher.module.parameters())


def test_no_step_leaves_crops_as_they_are(teacher: ModelGraph) -> None:
    crops = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(inverted(teacher.module, crops, torch.zeros(2).long(), steps=0, lr=0.1), crops)


def joined(teacher: ModelGraph, digits: DataModule, images: int, keep: Path | None = None, seed: int = 0) -> Any:
    config = Inversion(images=images, steps=2)
    return with_inverted(digits.train.balanced(60), teacher, config, STRONG, seed, Silent(), keep)


def test_a_set_has_its_own_images_first_and_classes_evenly_behind(teacher: ModelGraph, digits: DataModule) -> None:
    whole, own = joined(teacher, digits, 25), digits.train.balanced(60)
    assert len(whole) == 85
    assert whole.labels[:60] == own.labels
    counts = torch.bincount(torch.tensor(whole.labels[60:]), minlength=10)
    assert sorted(counts.tolist()) == [2] * 5 + [3] * 5
    for position in (0, 59):
        torch.testing.assert_close(whole.pixels(position), own.pixels(position))
    assert whole.pixels(84).shape == own.pixels(0).shape and whole.pixels(84).dtype == own.pixels(0).dtype
    batch, _ = next(iter(whole.batches(85)))
    assert torch.isfinite(batch).all()


def test_equal_seeds_give_equal_images_and_leave_random_numbers_alone(teacher: ModelGraph, digits: DataModule) -> None:
    torch.manual_seed(5)
    first = joined(teacher, digits, 8)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    again, other = joined(teacher, digits, 8), joined(teacher, digits, 8, seed=1)
    assert torch.equal(first.pixels(64), again.pixels(64))
    assert not torch.equal(first.pixels(64), other.pixels(64))


def test_training_that_goes_on_sees_the_same_images(
    teacher: ModelGraph, digits: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = joined(teacher, digits, 8, tmp_path / "kept")
    monkeypatch.setattr(inversion, "_invert", lambda *_: pytest.fail("made anew"))
    again = joined(teacher, digits, 8, tmp_path / "kept")
    assert again.labels == first.labels
    assert all(torch.equal(first.pixels(n), again.pixels(n)) for n in range(60, 68))


@pytest.mark.parametrize("content", [b"no images", {"pixels": torch.zeros(1)}], ids=["garbage", "incomplete"])
def test_damaged_images_are_named(teacher: ModelGraph, digits: DataModule, tmp_path: Path, content: Any) -> None:
    path = tmp_path / KEPT_FILE
    path.write_bytes(content) if isinstance(content, bytes) else save_file(content, path)
    with pytest.raises(InputError, match="damaged"):
        joined(teacher, digits, 8, tmp_path)


def test_a_set_too_large_to_hold_is_refused(
    teacher: ModelGraph, digits: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.data.dataset.KEPT_BYTES_MAX", 1000)
    with pytest.raises(InputError, match="too many"):
        joined(teacher, digits, 8)


def test_a_stage_trains_on_them_and_says_so(teacher: ModelGraph, digits: DataModule, tmp_path: Path) -> None:
    config = Distill(
        loss=Loss(hard=0, soft=1), labels="teacher", train=STRONG, invert=Inversion(images=36, steps=2)
    )  # fmt: skip
    context = StageContext(
        digits, 0, Silent(), {"dense": StageResult(teacher)}.__getitem__, tmp_path, keep=tmp_path / "kept"
    )
    result = DistillStage(config).apply(teacher, context)
    assert result.metrics["images"] == 96
    assert "96 images, 36 of them inverted" in result.changes[0].what
    assert len(load_file(tmp_path / "kept" / KEPT_FILE)["labels"]) == 36


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"teacher": "none"}, "invert"),
        ({"loss": Loss(hard=1, soft=0)}, "invert"),
        ({"train": STRONG.model_copy(update={"augment": "light", "mix": False})}, "train.augment"),
    ],
    ids=str,
)
def test_what_cannot_be_inverted_is_refused_before_anything_runs(keys: dict[str, Any], path: str) -> None:
    given = {"train": STRONG.model_copy(update={"mix": False}), "invert": Inversion(), **keys}
    problems = unlearnable(Distill(**given))
    assert [problem.where for problem in problems] == [path]
