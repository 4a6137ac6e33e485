"""Where timm and torchvision number class folders differently, the dense model decides, or the run is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitslim.data.files.sets import list_sets
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.run.class_order import resolve_class_order
from vitslim.progress import Silent
from vitslim.recipe import validate
from vitslim.recipe.schema import Recipe
from vitslim.results import LayerNote

ORDERS = {"timm": ("1", "2", "10"), "torchvision": ("1", "10", "2")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of classes 1, 2 and 10, whose brightness tells the class."""
    for name in ("1", "2", "10"):
        for split in ("train", "val"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.full((32, 32, 3), 20 * int(name) + number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def recipe(root: Path, **data: Any) -> Recipe:
    return validate({
        "name": "small", "model": {"timm": "vit_tiny_patch16_224"}, "stages": ["export"],
        "data": {"kind": "imagefolder", "root": str(root), **data},
    })  # fmt: skip


def resolve(given: Recipe, model: ModelGraph) -> tuple[Recipe, tuple[LayerNote, ...]]:
    return resolve_class_order(given, model, list_sets(given.data, None), Silent())


def dense(tiny_session_graph: ModelGraph, order: tuple[str, ...] | None) -> ModelGraph:
    """Return a model of three classes that tells them by brightness, or for None always answers the first."""

    class ByBrightness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            value = (images.mean(dim=(1, 2, 3)) * 0.5 + 0.5) * 255
            centers = torch.tensor([20.0 * int(name) + 1.5 for name in order or ("1", "2", "10")])
            logits = -(value[:, None] - centers).abs()
            return logits if order else logits * 0 - centers

    return ModelGraph(torch.fx.symbolic_trace(ByBrightness()), replace(tiny_session_graph.source, classes=3))


@pytest.mark.parametrize("trained", ORDERS)
def test_the_order_in_which_the_model_is_right_is_taken(
    trained: str, root: Path, tiny_session_graph: ModelGraph
) -> None:
    found, (note,) = resolve(recipe(root), dense(tiny_session_graph, ORDERS[trained]))
    assert found.data.classes == trained
    assert note.result == f"data.classes = {trained}" and note.reason.startswith("100.0% of 12 training images")


def test_a_model_that_does_not_decide_is_refused(root: Path, tiny_session_graph: ModelGraph) -> None:
    with pytest.raises(InputError, match="does not decide") as error:
        resolve(recipe(root), dense(tiny_session_graph, None))
    assert "data.classes" in error.value.hint


def test_a_named_order_stays(root: Path, tiny_session_graph: ModelGraph) -> None:
    given = recipe(root, classes="timm")
    assert resolve(given, dense(tiny_session_graph, None)) == (given, ())
