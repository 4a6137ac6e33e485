"""Models without a classifier: embeddings, maps of backbones, and checkpoints that have a head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vitslim.errors import InputError, UsageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import verify_axes

NAME = "vit_tiny_patch16_224"
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (16, 32, 32, 32)}
MAPS: Mapping[str, Any] = {**CONVNEXT, "features_only": True, "out_indices": (0, 1)}


@pytest.fixture(scope="module")
def backbone() -> ModelGraph:
    return trace_timm("convnext_atto", dict(MAPS))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_model_without_a_classifier_is_a_feature_extractor(tiny_kwargs: dict[str, Any], images: torch.Tensor) -> None:
    graph = trace_timm(NAME, tiny_kwargs | {"num_classes": 0})
    source = graph.source
    assert (source.task, source.classes, source.outputs, source.has_maps) == ("features", 0, {"features": (64,)}, False)
    model = timm.create_model(NAME, **tiny_kwargs | {"num_classes": 0}).eval()
    model.load_state_dict(graph.module.state_dict())
    assert torch.equal(graph.module(images), model(images))
    embed = next(axis for axis in graph.axes.axes if axis.name == "embed")
    assert (embed.kind, embed.frozen) == ("embed", "is an output of the model")


def test_a_classifier_is_one_by_default_and_may_have_several_labels(
    tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any]
) -> None:
    assert (tiny_graph.source.task, tiny_graph.source.outputs) == ("classify", {"logits": (10,)})
    assert trace_timm(NAME, tiny_kwargs, task="multilabel").source.task == "multilabel"


@pytest.mark.parametrize(
    ("classes", "task", "message"),
    [
        (10, "features", "has a classifier of 10 classes"),
        (0, "classify", "no classifier"),
        (0, "multilabel", "no class"),
    ],
)
def test_a_task_that_is_not_the_models_is_refused(
    tiny_kwargs: dict[str, Any], classes: int, task: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        trace_timm(NAME, tiny_kwargs | {"num_classes": classes}, task=task)


def test_the_maps_of_a_backbone_are_those_of_timm(backbone: ModelGraph) -> None:
    assert backbone.source.outputs == {"features_0": (16, 56, 56), "features_1": (32, 28, 28)}
    assert backbone.source.has_maps
    model = timm.create_model("convnext_atto", **MAPS).eval()
    model.load_state_dict(backbone.module.state_dict())
    images = torch.randn(2, 3, 224, 224)
    for found, expected in zip(backbone.module(images), model(images), strict=True):
        assert torch.equal(found, expected)
    assert verify_axes(backbone).holds


def test_a_saved_backbone_is_loaded_bit_for_bit(backbone: ModelGraph, tmp_path: Path) -> None:
    save_graph(backbone, tmp_path)
    loaded = load_graph(tmp_path)
    assert loaded.source == backbone.source
    images = torch.randn(1, 3, 224, 224)
    assert all(map(torch.equal, loaded.module(images), backbone.module(images)))


def test_without_classes_the_head_of_a_checkpoint_is_left_out(
    tiny_graph: ModelGraph, tiny_kwargs: dict[str, Any], images: torch.Tensor, tmp_path: Path
) -> None:
    model = timm.create_model(NAME, **tiny_kwargs).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    graph = trace_timm(NAME, tiny_kwargs | {"num_classes": 0}, tmp_path / "w.safetensors")
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(graph.module(images), expected, rtol=0, atol=0)
    assert graph.source.weights == ("the head of the checkpoint, of 10 classes, is left out: num_classes = 0",)


def test_a_backbone_takes_the_weights_of_the_whole_model(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", num_classes=7, **CONVNEXT).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    graph = trace_timm("convnext_atto", dict(MAPS), tmp_path / "w.safetensors", seed=3)
    images = torch.randn(1, 3, 224, 224)
    expected = whole.forward_intermediates(images, indices=[0, 1], intermediates_only=True)
    for found, map_ in zip(graph.module(images), expected, strict=True):
        torch.testing.assert_close(found, map_)
    assert any("of 7 classes, is left out" in note for note in graph.source.weights)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    other = timm.create_model("convnext_atto", **CONVNEXT | {"dims": (8, 16, 16, 16)})
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="does not fit 'convnext_atto'"):
        trace_timm("convnext_atto", dict(MAPS), tmp_path / "w.safetensors")


def test_arguments_that_timm_rejects_by_an_index_are_refused() -> None:
    with pytest.raises(UsageError, match="timm cannot build"):
        trace_timm("convnext_atto", {"depths": (1, 1), "dims": (16, 32)})
