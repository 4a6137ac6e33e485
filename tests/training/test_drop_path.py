"""Stochastic depth in the module that is trained."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

from vitslim.data import Dataset
from vitslim.errors import StageError
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.stages import Distill
from vitslim.recipe.stages.training import Features, Loss
from vitslim.recipe.train import Train
from vitslim.training.distillation import train_with_teacher
from vitslim.training.distillation.features import block_outputs
from vitslim.training.forms.drop_path import with_drop_path
from vitslim.training.forms.taps import with_taps


def rates_of(module: GraphModule) -> list[float]:
    return [node.args[1] for node in module.graph.nodes if "drop_images" in str(node.target)]


def test_rates_rise_linearly_over_blocks_and_parameters_are_shared(tiny_graph: ModelGraph) -> None:
    nodes = len(tiny_graph.module.graph.nodes)
    dropped = with_drop_path(tiny_graph.module, tiny_graph, 0.4)
    assert rates_of(dropped) == pytest.approx([0, 0, 0.4, 0.4])
    assert len(tiny_graph.module.graph.nodes) == nodes
    assert all(weight is tiny_graph.parameters()[name] for name, weight in dropped.named_parameters())
    assert with_drop_path(tiny_graph.module, tiny_graph, 0.0) is tiny_graph.module


def test_branches_of_a_model_with_token_squeezing_are_dropped_too(tiny_graph: ModelGraph) -> None:
    squeezed = insert_squeeze(tiny_graph, {"blocks.1": 8})
    dropped = with_drop_path(squeezed.module, squeezed, 0.4)
    assert rates_of(dropped) == pytest.approx([0, 0, 0.4, 0.4])
    assert dropped(torch.randn(3, *tiny_graph.source.image)).shape == (3, 10)


def test_skipped_branches_leave_the_input_of_their_block(tiny_graph: ModelGraph) -> None:
    """At the largest rate nearly every image skips both branches of the last block."""
    outputs = block_outputs(tiny_graph)
    tapped = with_taps(tiny_graph.module, list(outputs.values()))
    images = torch.randn(64, *tiny_graph.source.image)
    torch.manual_seed(0)
    with torch.no_grad():
        _, (first, second) = with_drop_path(tapped, tiny_graph, 0.999)(images)
        _, (expected, full) = tapped(images)
    assert torch.equal(first, expected)
    skipped = (second == first).flatten(1).all(dim=1)
    assert 60 <= skipped.sum() <= 64
    assert not torch.equal(full, expected)


def test_each_image_draws_each_branch_on_its_own(tiny_graph: ModelGraph) -> None:
    outputs = list(block_outputs(tiny_graph).values())
    tapped = with_taps(tiny_graph.module, outputs)
    dropped = with_drop_path(tapped, tiny_graph, 0.5)
    image = torch.randn(1, *tiny_graph.source.image)
    torch.manual_seed(0)
    with torch.no_grad():
        _, (start, _) = tapped(image)
        _, (_, many) = dropped(image.expand(256, -1, -1, -1))
    kinds = {round(float(distance), 3) for distance in (many - start).flatten(1).norm(dim=1)}
    assert len(kinds) == 4  # none, attention, MLP, or both
    assert 0.0 in kinds


def test_timm_models_with_the_same_seed_drop_the_same_branches(tiny_kwargs: dict[str, object]) -> None:
    """The exported graph with drop path is timm's own model in training mode."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **tiny_kwargs, drop_path_rate=0.5).train()
    graph = trace_timm("vit_tiny_patch16_224", dict(tiny_kwargs))
    with torch.no_grad():
        for name, weight in graph.parameters().items():
            weight.copy_(dict(model.named_parameters())[name])
        images = torch.randn(16, *graph.source.image)
        torch.manual_seed(1)
        theirs = model(images)
        torch.manual_seed(1)
        ours = with_drop_path(graph.module, graph, 0.5)(images)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_student_is_trained_with_drop_path_and_stored_without_it(
    tiny_graph: ModelGraph, some_digits: Dataset
) -> None:
    """The teacher has the same weights, so that only drop path makes a difference."""
    losses = {}
    for rate in (0.0, 0.5):
        student = tiny_graph.copy()
        train = Train(epochs=1, batch=32, images=64, lr=1e-9, drop_path=rate)
        config = Distill(loss=Loss(hard=0, soft=1, feature=1), features=Features(only_agreeing=False), train=train)
        _, metrics = train_with_teacher(student, config, some_digits, lambda _: tiny_graph, 0, Silent())
        losses[rate] = metrics["loss_first"]
        assert not rates_of(student.module)
        assert not student.module.training
    assert losses[0.0] == pytest.approx(0, abs=1e-5)
    assert losses[0.5] > 1e-3


def test_a_model_without_residual_blocks_is_refused(tiny_kwargs: dict[str, object]) -> None:
    graph = trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "depth": 0})
    with pytest.raises(StageError, match="drop path needs residual blocks") as caught:
        with_drop_path(graph.module, graph, 0.1)
    assert "train.drop_path" in caught.value.hint
