"""Squeezing inside a graph, compared with squeezing by hand in the timm module, and together with pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits import InsertSqueeze
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.squeeze import squeeze_tokens
from vitslim.graph.ops.token_scores import RECEIVED_ATTENTION
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import verify_axes
from vitslim.stages.export.onnx_export import export_onnx

KEEP = {"blocks.0": 11, "blocks.2": 5}


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def by_hand(name: str, kwargs: dict[str, Any], keep: dict[int, int], x: torch.Tensor) -> torch.Tensor:
    """Run the timm model block by block, with squeezing between attention and MLP."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **kwargs).eval()
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for index, block in enumerate(model.blocks):
        normed, attention = block.norm1(x), block.attn
        batch, tokens, _ = normed.shape
        qkv = attention.qkv(normed).reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(qkv[0] @ qkv[1].transpose(-2, -1) * attention.scale, dim=-1)
        x = x + block.ls1(attention(normed))
        if index in keep:
            x = squeeze_tokens(x, weights.mean(1)[:, 0, model.num_prefix_tokens :], keep[index])
        x = x + block.ls2(block.mlp(block.norm2(x)))
    logits: torch.Tensor = model.forward_head(model.norm(x))
    return logits


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_equals_the_model_squeezed_by_hand(name: str, kwargs: dict[str, Any]) -> None:
    squeezed = insert_squeeze(trace_timm(name, kwargs), KEEP)
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = by_hand(name, kwargs, {0: 11, 2: 5}, images(batch))
            torch.testing.assert_close(squeezed.module(images(batch)), expected, rtol=1e-4, atol=1e-5)


MODELS_WITHOUT_CLASS_TOKEN = [
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_base_patch16_siglip_224", {}),
    ("vit_medium_patch16_reg4_gap_256", {}),
]


@pytest.mark.parametrize("method", ["etps", "evit", "prune-only"])
@pytest.mark.parametrize(("name", "extra"), MODELS_WITHOUT_CLASS_TOKEN)
def test_models_without_a_class_token_score_by_received_attention(
    name: str, extra: dict[str, Any], method: str, kwargs: dict[str, Any]
) -> None:
    squeezed = insert_squeeze(trace_timm(name, {**kwargs, **extra}), KEEP, method)
    scores = [node for node in squeezed.module.graph.nodes if node.target is RECEIVED_ATTENTION]
    assert len(scores) == 2
    assert squeezed.module(images(2)).shape == (2, 10)


@pytest.mark.parametrize(("method", "left"), [("evit", [13, 7]), ("prune-only", [12, 6])])
def test_baselines_keep_the_same_tokens(method: str, left: list[int], graph: ModelGraph) -> None:
    squeezed = insert_squeeze(graph, KEEP, method)
    anatomy = find_anatomy(squeezed)
    assert [anatomy.shapes[block.squeeze][1] for block in anatomy.blocks if block.squeeze] == left
    assert verify_axes(squeezed).max_error < 1e-5
    pruned = cut(squeezed)
    assert pruned.module(images(3)).shape == (3, 10)


def test_the_input_graph_does_not_change_and_the_edit_is_recorded(graph: ModelGraph) -> None:
    before = graph.module(images(2))
    squeezed = insert_squeeze(graph, KEEP)
    assert torch.equal(graph.module(images(2)), before)
    assert graph.edits == ()
    assert squeezed.edits == (InsertSqueeze("etps", KEEP),)
    anatomy = find_anatomy(squeezed)
    assert [block.squeeze is not None for block in anatomy.blocks] == [True, False, True]
    assert [anatomy.shapes[block.squeeze][1] for block in anatomy.blocks if block.squeeze] == [12, 6]


def test_keeping_all_tokens_changes_nothing(graph: ModelGraph) -> None:
    same = insert_squeeze(graph, {"blocks.0": 16, "blocks.1": 16})
    assert same.edits == ()
    assert torch.equal(same.module(images(3)), graph.module(images(3)))


def test_two_insertions_equal_one(graph: ModelGraph) -> None:
    once = insert_squeeze(graph, KEEP)
    for order in (("blocks.0", "blocks.2"), ("blocks.2", "blocks.0")):
        twice = graph
        for block in order:
            twice = insert_squeeze(twice, {block: KEEP[block]})
        assert torch.equal(twice.module(images(2)), once.module(images(2)))


def test_trains(graph: ModelGraph) -> None:
    squeezed = insert_squeeze(graph, KEEP).module.train()
    squeezed(images(3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in squeezed.parameters())


def test_exports_with_constant_token_counts_and_equals_onnx_runtime(graph: ModelGraph, tmp_path: Path) -> None:
    squeezed = insert_squeeze(graph, KEEP)
    module = squeezed.module
    path = export_onnx(squeezed, tmp_path / "model.onnx").path
    loaded = onnx.load(path)
    assert sum(node.op_type == "TopK" for node in loaded.graph.node) == 4
    shapes = {value.name: value.type.tensor_type.shape.dim for value in loaded.graph.value_info}
    chosen = [shapes[n.output[0]] for n in loaded.graph.node if n.op_type in {"TopK", "GatherND"}]
    assert [[size.dim_value for size in shape[1:2]] for shape in chosen] == [[16], [11], [11], [5], [11], [5], [5], [6]]
    assert all(size.HasField("dim_value") for shape in chosen for size in shape[1:])
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 5):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), module(images(batch)).detach(), rtol=1e-4, atol=1e-5)


def cut(graph: ModelGraph) -> ModelGraph:
    """Cut an axis of every kind."""
    sizes = {axis.name: axis.size for axis in graph.axes.prunable}
    return slice_axes(graph, {name: range(1, 1 + max(1, size // 2)) for name, size in sizes.items()})


def test_pruning_and_squeezing_commute(graph: ModelGraph) -> None:
    pruned_first = insert_squeeze(cut(graph), KEEP)
    squeezed_first = cut(insert_squeeze(graph, KEEP))
    assert pruned_first.module.get_parameter("blocks.1.attn.qkv.weight").shape[1] == 32
    torch.testing.assert_close(pruned_first.module(images(3)), squeezed_first.module(images(3)))
    assert len(pruned_first.edits) == len(squeezed_first.edits) == 2


def test_axes_stay_the_same_and_permute(graph: ModelGraph) -> None:
    squeezed = insert_squeeze(graph, KEEP)
    before = {axis.name: (axis.kind, axis.size) for axis in graph.axes.prunable}
    assert {axis.name: (axis.kind, axis.size) for axis in squeezed.axes.prunable} == before
    assert squeezed.axes.unknown_ops == graph.axes.unknown_ops
    assert verify_axes(squeezed).max_error < 1e-5


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"blocks.3": 4}, "no block 'blocks.3'"),
        ({"blocks.1": 17}, "cannot keep 17 of 16"),
        ({"blocks.1": 0}, "cannot keep 0 of 16"),
        ({"blocks.0": 4, "blocks.1": 5}, "cannot keep 5 of 4"),
    ],
)
def test_invalid_blocks_and_counts_are_refused(graph: ModelGraph, keep: dict[str, int], words: str) -> None:
    with pytest.raises(StageError, match=words):
        insert_squeeze(graph, keep)


def test_a_block_is_squeezed_once(graph: ModelGraph) -> None:
    squeezed = insert_squeeze(graph, KEEP)
    with pytest.raises(StageError, match=r"'blocks\.0' is already squeezed"):
        insert_squeeze(squeezed, {"blocks.0": 4})
    with pytest.raises(StageError, match="a later block keeps 5"):
        insert_squeeze(squeezed, {"blocks.1": 4})


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("beit_base_patch16_224", {}, "bias for each pair"),
        ("vit_small_patch16_rope_224", {}, "position table"),
        ("vit_small_patch16_18x2_224", {}, "MLP does not follow"),
    ],
)
def test_models_that_cannot_be_squeezed_have_a_reason(
    name: str, extra: dict[str, Any], words: str, kwargs: dict[str, Any]
) -> None:
    with pytest.raises(StageError, match=words) as error:
        insert_squeeze(trace_timm(name, {**kwargs, **extra}), {"blocks.0": 4})
    assert "token-squeeze" in error.value.message
