"""Block outputs, the distance between features, and the weights of blocks."""

from __future__ import annotations

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages.training import Features
from vitslim.training.distillation.features import block_outputs, block_weights, feature_losses, select_blocks
from vitslim.training.forms.taps import with_taps


def test_taps_return_block_outputs_and_share_parameters(tiny_graph: ModelGraph) -> None:
    outputs = block_outputs(tiny_graph)
    assert list(outputs) == ["blocks.0", "blocks.1"]
    tapped = with_taps(tiny_graph.module, list(outputs.values()))
    images = torch.randn(3, *tiny_graph.source.image)
    with torch.no_grad():
        logits, features = tapped(images)
        torch.testing.assert_close(logits, tiny_graph.module(images))
    assert [tuple(one.shape) for one in features] == [(3, *features[0].shape[1:])] * 2
    mine, theirs = (dict(one.named_parameters()) for one in (tapped, tiny_graph.module))
    assert all(mine[name] is theirs[name] for name in theirs)


def test_the_last_third_of_the_blocks_is_compared_by_default(tiny_graph: ModelGraph) -> None:
    assert select_blocks(Features(), tiny_graph) == ("blocks.1",)
    assert select_blocks(Features(blocks="all"), tiny_graph) == ("blocks.0", "blocks.1")
    assert select_blocks(Features(blocks=("blocks.0",)), tiny_graph) == ("blocks.0",)
    with pytest.raises(StageError, match=r"no block 'blocks\.7'"):
        select_blocks(Features(blocks=("blocks.7",)), tiny_graph)


def test_feature_loss_is_the_mean_over_counted_images_only() -> None:
    student, teacher = torch.zeros(2, 3, 4, requires_grad=True), torch.stack([torch.ones(3, 4), 7 * torch.ones(3, 4)])
    only_first = feature_losses([student], [teacher], torch.tensor([True, False]))
    assert only_first.tolist() == [1.0]
    assert feature_losses([student], [teacher], torch.tensor([True, True])).tolist() == [25.0]
    none = feature_losses([student], [teacher], torch.tensor([False, False]))
    none.sum().backward()
    assert none.tolist() == [0.0]
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_block_weights_have_mean_one_and_follow_the_sign() -> None:
    losses = torch.tensor([0.1, 0.5, 2.0])
    falling, rising = (block_weights(losses, sign, 1.0) for sign in (-1, 1))
    assert falling.mean().item() == pytest.approx(1) and rising.mean().item() == pytest.approx(1)
    assert falling.argmax() == 0 and rising.argmax() == 2
