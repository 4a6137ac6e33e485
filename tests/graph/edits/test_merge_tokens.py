"""Merging inside a graph, compared with merging by hand in the timm module, and together with pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch

from vitslim.graph.anatomy import find_anatomy, find_branches, squeeze_obstacle
from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits import MergeTokens
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.edits.remove_blocks import remove_blocks
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.merge import (
    alternate_sizes,
    match_alternate,
    match_ranked,
    merge_alternate,
    merge_ranked,
    ranked_sizes,
)
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import cost, merge_cuts, sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import verify_axes
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload import read_workload

COUNTS = {
    "tome": {"blocks.0": KeptTokens(16, 11), "blocks.2": KeptTokens(11, 7)},
    "diffrate": {"blocks.0": KeptTokens(13, 11), "blocks.2": KeptTokens(9, 7)},
}
METHODS = pytest.mark.parametrize("method", list(COUNTS))


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def merged(graph: ModelGraph, method: str, proportional: bool = True) -> ModelGraph:
    return merge_tokens(graph, method, COUNTS[method], proportional)


def by_hand(name: str, kwargs: dict[str, Any], method: str, proportional: bool, x: torch.Tensor) -> torch.Tensor:
    """Run the timm model block by block, with merging between attention and MLP."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **kwargs).eval()
    prefix = model.num_prefix_tokens
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    sizes = torch.ones(x.shape[:2])
    for index, block in enumerate(model.blocks):
        attention = block.attn
        batch, tokens, width = x.shape
        qkv = attention.qkv(block.norm1(x)).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        logits = qkv[0] @ qkv[1].transpose(-2, -1) * attention.scale
        weights = torch.softmax(logits + sizes.log()[:, None, None] * proportional, dim=-1)
        x = x + block.ls1(attention.proj((weights @ qkv[2]).transpose(1, 2).reshape(batch, tokens, width)))
        count = COUNTS[method].get(f"blocks.{index}")
        if count and method == "tome":
            match = match_alternate(qkv[1], prefix, count.keep)
            old, sizes = sizes, alternate_sizes(sizes, match, prefix, count.keep)
            x = merge_alternate(x, match, old, sizes, prefix)
        elif count:
            score = weights.mean(1)[:, 0] if "siglip" not in name else weights.mean((1, 2))
            match = match_ranked(x, score[:, prefix:], *count)
            old, sizes = sizes, ranked_sizes(sizes, match, prefix, count.keep)
            x = merge_ranked(x, match, old, sizes, prefix)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    logits: torch.Tensor = model.forward_head(model.norm(x))
    return logits


@METHODS
@pytest.mark.parametrize(
    ("name", "proportional"),
    [
        ("vit_tiny_patch16_224", True),
        ("vit_tiny_patch16_224", False),
        ("deit_tiny_distilled_patch16_224", True),
        ("deit3_small_patch16_224", True),
        ("vit_small_patch14_reg4_dinov2", True),
        ("vit_base_patch16_siglip_224", True),
    ],
)
def test_equals_the_model_merged_by_hand(name: str, proportional: bool, method: str, kwargs: dict[str, Any]) -> None:
    found = merged(trace_timm(name, kwargs), method, proportional)
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = by_hand(name, kwargs, method, proportional, images(batch))
            torch.testing.assert_close(found.module(images(batch)), expected, rtol=1e-4, atol=1e-5)


@METHODS
def test_the_input_graph_does_not_change_and_the_edit_is_recorded(graph: ModelGraph, method: str) -> None:
    before = graph.module(images(2))
    found = merged(graph, method)
    assert torch.equal(graph.module(images(2)), before)
    assert graph.edits == ()
    assert found.edits == (MergeTokens(method, COUNTS[method], True),)
    assert MergeTokens.from_json(found.edits[0].to_json()) == found.edits[0]
    anatomy = find_anatomy(found)
    assert [anatomy.shapes[block.squeeze][1] for block in anatomy.blocks if block.squeeze] == [12, 8]
    assert [bool(b.attention and b.attention.size_bias) for b in anatomy.blocks] == [False, True, True]
    assert not any(block.attention and block.attention.biased for block in anatomy.blocks)
    assert squeeze_obstacle(anatomy) == ""


@METHODS
def test_keeping_all_tokens_changes_nothing(graph: ModelGraph, method: str) -> None:
    same = merge_tokens(graph, method, {"blocks.0": KeptTokens(16, 16), "blocks.1": KeptTokens(16, 16)})
    assert same.edits == ()
    assert torch.equal(same.module(images(3)), graph.module(images(3)))
    assert torch.equal(merge_tokens(graph, method, {}).module(images(3)), graph.module(images(3)))


@METHODS
@pytest.mark.parametrize("proportional", [True, False])
def test_two_insertions_equal_one(graph: ModelGraph, method: str, proportional: bool) -> None:
    twice = graph
    for block, count in COUNTS[method].items():
        twice = merge_tokens(twice, method, {block: count}, proportional)
    assert torch.equal(twice.module(images(2)), merged(graph, method, proportional).module(images(2)))


def test_tokens_that_are_only_dropped_have_no_sizes(graph: ModelGraph) -> None:
    dropped = merge_tokens(graph, "diffrate", {"blocks.0": KeptTokens(9, 9)})
    expected = insert_squeeze(graph, {"blocks.0": 9}, "prune-only")
    assert torch.equal(dropped.module(images(2)), expected.module(images(2)))
    assert sketch(dropped).merged == {}


@METHODS
def test_trains(graph: ModelGraph, method: str) -> None:
    module = merged(graph, method).module.train()
    module(images(3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@METHODS
def test_exports_with_constant_counts_and_equals_onnx_runtime(graph: ModelGraph, method: str, tmp_path: Path) -> None:
    found = merged(graph, method)
    export_onnx(found, tmp_path / "model.onnx")
    loaded = onnx.load(tmp_path / "model.onnx")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in loaded.graph.value_info}
    chosen = [shapes[n.output[0]] for n in loaded.graph.node if n.op_type in {"TopK", "GatherND", "ScatterElements"}]
    assert len(chosen) >= 8
    assert all(size.HasField("dim_value") for shape in chosen for size in shape[1:])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 2, 7):
        (logits,) = session.run(None, {"pixel_values": images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), found.module(images(batch)).detach(), rtol=0, atol=1e-5)
        workload = read_workload(tmp_path / "model.onnx", batch)
        assert workload.macs == batch * cost(found).macs
        assert not workload.unknown


@METHODS
@pytest.mark.parametrize("proportional", [True, False])
def test_saved_graphs_are_equal_bit_for_bit(graph: ModelGraph, method: str, proportional: bool, tmp_path: Path) -> None:
    found = merged(graph, method, proportional)
    save_graph(found, tmp_path)
    loaded = load_graph(tmp_path)
    assert loaded.edits == found.edits
    assert torch.equal(loaded.module(images(2)), found.module(images(2)))


def cut(graph: ModelGraph) -> ModelGraph:
    """Cut an axis of every kind."""
    sizes = {axis.name: axis.size for axis in graph.axes.prunable}
    return slice_axes(graph, {name: range(1, 1 + max(1, size // 2)) for name, size in sizes.items()})


@METHODS
def test_pruning_and_merging_commute(graph: ModelGraph, method: str) -> None:
    pruned_first, merged_first = merged(cut(graph), method), cut(merged(graph, method))
    assert pruned_first.module.get_parameter("blocks.1.attn.qkv.weight").shape[1] == 32
    torch.testing.assert_close(pruned_first.module(images(3)), merged_first.module(images(3)))
    assert sketch(pruned_first).cost() == sketch(merged_first).cost()


@METHODS
def test_axes_stay_the_same_and_permute(graph: ModelGraph, method: str) -> None:
    found = merged(graph, method)
    before = {axis.name: (axis.kind, axis.size) for axis in graph.axes.prunable}
    assert {axis.name: (axis.kind, axis.size) for axis in found.axes.prunable} == before
    assert found.axes.unknown_ops == graph.axes.unknown_ops
    assert verify_axes(found).max_error < 1e-5


@METHODS
def test_the_estimate_equals_the_graph(graph: ModelGraph, method: str) -> None:
    dense = sketch(graph)
    planned, found = dense.with_squeeze(merge_cuts(dense, method, COUNTS[method], True)), sketch(merged(graph, method))
    assert planned.cost() == found.cost()
    assert planned.squeezed == found.squeezed
    assert planned.tokens == found.tokens == 8
    for sketched in (planned, found):
        assert {b.name for b in sketched.branches if b.obstacle} == {"blocks.0.attn", "blocks.2.attn"}


@METHODS
def test_attention_that_reads_sizes_can_be_removed(graph: ModelGraph, method: str) -> None:
    found = remove_blocks(merged(graph, method), ["blocks.1.attn"])
    anatomy = find_anatomy(found)
    assert {b.name for b in find_branches(found.module, anatomy.shapes)} >= {"blocks.1.mlp", "blocks.2.mlp"}
    assert found.module(images(2)).shape == (2, 10)


@METHODS
def test_decomposed_attention_weighs_keys_too(graph: ModelGraph, method: str) -> None:
    parts = graph.copy()
    decompose_attention(parts)
    parts.module.graph.eliminate_dead_code()
    parts.forget_axes()
    found = merged(parts, method)
    torch.testing.assert_close(found.module(images(2)), merged(graph, method).module(images(2)))
    assert squeeze_obstacle(find_anatomy(found)) == ""
    assert [bool(b.attention and b.attention.size_bias) for b in find_anatomy(found).blocks] == [False, True, True]


def test_merging_again_replaces_the_sizes_in_decomposed_attention(graph: ModelGraph) -> None:
    parts = graph.copy()
    decompose_attention(parts)
    parts.module.graph.eliminate_dead_code()
    parts.forget_axes()
    twice = parts
    for block, count in COUNTS["tome"].items():
        twice = merge_tokens(twice, "tome", {block: count})
    torch.testing.assert_close(twice.module(images(2)), merged(graph, "tome").module(images(2)))
