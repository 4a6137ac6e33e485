"""Tokens are followed back to the patches of the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.token_decisions import NONE, TokenDecision
from vitslim.graph.token_trace import TokenStep, TokenTrace, follow_patches, patch_grid, trace_tokens
from vitslim.graph.trace import trace_timm

BLOCKS = {"blocks.0": 9, "blocks.1": 4}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def traced(graph: ModelGraph, method: str, images: torch.Tensor) -> TokenTrace:
    found = trace_tokens(insert_squeeze(graph, BLOCKS, method), images)
    assert found is not None
    return found


def test_patches_are_followed_through_two_squeezes() -> None:
    """Six patches: 1 and 4 are fused into 5 and 0; then the tokens of 2 and 5 go, 2 into 0 and 5 into none."""
    first = TokenDecision(torch.tensor([[0, 2, 3, 5]]), torch.tensor([[0, 3, 1, 2, 0, 3]]))
    second = TokenDecision(torch.tensor([[0, 2]]), torch.tensor([[0, 0, 1, NONE]]))
    (steps,) = follow_patches([first, second], ["blocks.0", "blocks.1"])
    assert steps == (
        TokenStep("blocks.0", (0, 2, 3, 5), {1: 5, 4: 0}),
        TokenStep("blocks.1", (0, 3), {2: 0}),
    )


def test_each_image_has_steps_of_its_own_in_any_order_of_tokens() -> None:
    first = TokenDecision(torch.tensor([[2, 0], [1, 2]]), torch.tensor([[1, 0, 0], [NONE, 0, 1]]))
    second = TokenDecision(torch.tensor([[1], [1]]), torch.tensor([[0, 0], [NONE, 0]]))
    assert follow_patches([first, second], ["a", "b"]) == (
        (TokenStep("a", (0, 2), {1: 2}), TokenStep("b", (0,), {2: 0})),
        (TokenStep("a", (1, 2), {}), TokenStep("b", (2,), {})),
    )


def test_an_added_token_is_of_no_patch() -> None:
    first = TokenDecision(torch.tensor([[0, 1, NONE]]), torch.tensor([[0, 1, 2, 2]]))
    second = TokenDecision(torch.tensor([[0, 2, NONE]]), torch.tensor([[0, 2, 1]]))
    third = TokenDecision(torch.tensor([[0, NONE]]), torch.tensor([[0, 1, 1]]))
    (steps,) = follow_patches([first, second, third], ["a", "b", "c"])
    assert steps == (
        TokenStep("a", (0, 1), {2: None, 3: None}),
        TokenStep("b", (0,), {1: None}),
        TokenStep("c", (0,), {}),
    )


def test_every_patch_is_kept_squeezed_or_gone_before(tiny_graph: ModelGraph, images: torch.Tensor) -> None:
    found = traced(tiny_graph, "etps", images)
    assert (found.rows, found.columns, len(found.images)) == (4, 4, 3)
    for first, second in found.images:
        assert [first.block, second.block] == list(BLOCKS)
        assert (len(first.kept), len(second.kept)) == (9, 4)
        assert {*first.kept, *first.squeezed} == set(range(16))
        assert {*second.kept, *second.squeezed} == set(first.kept)
        for step in (first, second):
            assert set(step.squeezed.values()) <= set(step.kept)


def test_methods_keep_the_same_patches_and_differ_in_the_others(tiny_graph: ModelGraph, images: torch.Tensor) -> None:
    etps, pruned, evit = (traced(tiny_graph, method, images).images for method in ("etps", "prune-only", "evit"))
    for image in range(len(images)):
        kept = etps[image][0].kept
        assert kept == pruned[image][0].kept == evit[image][0].kept
        assert pruned[image][0].squeezed == pruned[image][1].squeezed == {}
        assert set(etps[image][0].squeezed) == set(range(16)) - set(kept)
        assert evit[image][0].squeezed == dict.fromkeys(etps[image][0].squeezed)


def test_kept_patches_have_the_highest_class_attention(tiny_graph: ModelGraph, images: torch.Tensor) -> None:
    squeezed = insert_squeeze(tiny_graph, {"blocks.0": 5}, "etps")
    (score,) = (node for node in squeezed.module.graph.nodes if "class_attention" in str(node.target))
    output = next(iter(squeezed.module.graph.find_nodes(op="output")))
    before = squeezed.module(images)
    found = trace_tokens(squeezed, images)
    torch.testing.assert_close(squeezed.module(images), before, rtol=0, atol=0)
    output.args = (score,)
    squeezed.module.recompile()
    expected = squeezed.module(images).topk(5).indices.sort().values
    assert found is not None
    assert [list(steps[0].kept) for steps in found.images] == expected.tolist()


def test_a_graph_that_keeps_all_tokens_has_no_trace(tiny_graph: ModelGraph, images: torch.Tensor) -> None:
    assert patch_grid(tiny_graph) == (4, 4)
    assert trace_tokens(tiny_graph, images) is None


def test_a_grid_that_is_not_square_has_no_trace(tiny_kwargs: dict[str, Any], images: torch.Tensor) -> None:
    graph = trace_timm("vit_tiny_patch16_224", {**tiny_kwargs, "patch_size": (8, 16)})
    assert patch_grid(graph) == (4, 2)
    assert trace_tokens(insert_squeeze(graph, {"blocks.0": 5}), images) is None
