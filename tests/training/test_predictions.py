from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from vitslim.data import Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.training import agreement, predict, sqnr_db, top1
from vitslim.training.evaluate import shown_below


def test_predictions_do_not_depend_on_the_batch_size(tiny_graph: ModelGraph, some_digits: Dataset) -> None:
    logits, labels = predict(tiny_graph.module, some_digits, 64, Silent(), "")
    others, _ = predict(tiny_graph.module, some_digits, 37, Silent(), "")
    assert logits.shape == (160, 10)
    assert not logits.requires_grad
    assert labels.tolist() == list(some_digits.labels)
    torch.testing.assert_close(logits, others)


def test_any_function_of_images_can_be_evaluated(some_digits: Dataset) -> None:
    logits, labels = predict(lambda images: images.flatten(1)[:, :10].double(), some_digits, 50, Silent(), "")
    assert logits.dtype == torch.float32
    assert 0 <= top1(logits, labels) <= 1


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    assert top1(logits, torch.tensor([0, 0, 0, 1])) == 0.75
    assert agreement(logits, -logits) == 0
    assert agreement(logits, 2 * logits) == 1
    assert sqnr_db(torch.tensor([10.0]), torch.tensor([9.0])) == pytest.approx(20)
    assert sqnr_db(logits, logits) == math.inf
    assert sqnr_db(torch.zeros(2), torch.ones(2)) == -math.inf


@pytest.mark.slow
def test_real_weights_on_real_images(shared_data: Path) -> None:
    """200 balanced images of a set on which DeiT-Tiny reaches 72.1 %: three standard errors are 9.5 points."""
    graph = trace_timm("deit_tiny_patch16_224", {}, shared_data / "deit_tiny" / "model.safetensors")
    config = Data(kind="imagefolder", root=str(shared_data / "imagenette"), eval_images=200)
    val = load_data(config, graph.source, 0).val
    assert top1(*predict(graph.module, val, 50, Silent(), "")) == pytest.approx(0.721, abs=0.095)


@pytest.mark.parametrize(
    ("equal", "images", "below"),
    [(249, 256, False), (248, 256, True), (63, 64, False), (59, 64, True), (256, 256, False), (0, 1, True)],
)
def test_agreement_is_below_the_floor_only_beyond_chance(equal: int, images: int, below: bool) -> None:
    """P(X >= 7 of 256 at 1.5 %) is 9.3 %, P(X >= 8) 4.1 %."""
    assert shown_below(equal / images, 0.985, images) == below
    assert not shown_below(equal / images, 0.0, images)
    assert shown_below(equal / images, 1.0, images) == (equal < images)
