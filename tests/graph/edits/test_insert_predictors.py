"""Token predictors inside a graph, compared with predictors by hand, and together with pruning and saving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch.nn import functional

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits import InsertPredictors
from vitslim.graph.edits.insert_predictors import (
    OPERATORS,
    find_predictors,
    insert_predictors,
    predictor_module,
)
from vitslim.graph.edits.remove_blocks import remove_blocks
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import verify_axes
from vitslim.stages.export.onnx_export import export_onnx

KEEP = {"blocks.0": 11, "blocks.2": 5}


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))


def predict_by_hand(tokens: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the keep probability of each patch token (DynamicViT, section 3.2)."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    width = tokens.shape[-1]
    normed = functional.layer_norm(tokens, (width,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    local, whole = functional.gelu(linear(normed, "fc1")).chunk(2, dim=-1)
    x = torch.cat([local, whole.mean(dim=1, keepdim=True).expand_as(whole)], dim=-1)
    x = functional.gelu(linear(functional.gelu(linear(x, "fc2")), "fc3"))
    return functional.log_softmax(linear(x, "fc4"), dim=-1)[..., 0].exp()


def by_hand(name: str, kwargs: dict[str, Any], squeezed: ModelGraph, method: str, x: torch.Tensor) -> torch.Tensor:
    """Run the timm model block by block, with a predictor at the input of some."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, **kwargs).eval()
    x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for index, block in enumerate(model.blocks):
        if (keep := KEEP.get(f"blocks.{index}")) is not None:
            prefix = f"vitslim.predictor.blocks.{index}."
            weights = {n.removeprefix(prefix): p for n, p in squeezed.parameters().items() if n.startswith(prefix)}
            x = OPERATORS[method](x, predict_by_hand(x[:, model.num_prefix_tokens :], weights), keep)
        x = block(x)
    logits: torch.Tensor = model.forward_head(model.norm(x))
    return logits


@pytest.mark.parametrize("method", ["dtps", "dynamicvit"])
@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ],
)
def test_equals_the_model_with_predictors_by_hand(
    name: str, extra: dict[str, Any], method: str, kwargs: dict[str, Any]
) -> None:
    kwargs = {**kwargs, **extra}
    squeezed = insert_predictors(trace_timm(name, kwargs), KEEP, method)
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = by_hand(name, kwargs, squeezed, method, images(batch))
            torch.testing.assert_close(squeezed.module(images(batch)), expected, rtol=1e-4, atol=1e-5)


def test_the_input_graph_does_not_change_and_the_edit_is_recorded(graph: ModelGraph) -> None:
    before = graph.module(images(2))
    squeezed = insert_predictors(graph, KEEP, "dtps")
    assert torch.equal(graph.module(images(2)), before)
    assert graph.edits == ()
    assert squeezed.edits == (InsertPredictors("dtps", KEEP),)
    anatomy = find_anatomy(squeezed)
    assert [anatomy.shapes[block.squeeze][1] for block in anatomy.blocks if block.squeeze] == [12, 6]
    assert [p.block for p in find_predictors(squeezed.module)] == ["blocks.0", "blocks.2"]
    added = squeezed.parameters().keys() - graph.parameters().keys()
    assert len(added) == 20
    assert all(name.startswith("vitslim.predictor.blocks.") for name in added)


def test_keeping_all_tokens_changes_nothing(graph: ModelGraph) -> None:
    same = insert_predictors(graph, {"blocks.0": 16, "blocks.1": 16}, "dtps")
    assert same.edits == ()
    assert same.parameters().keys() == graph.parameters().keys()
    assert torch.equal(same.module(images(3)), graph.module(images(3)))


def test_two_insertions_equal_one(graph: ModelGraph) -> None:
    once = insert_predictors(graph, KEEP, "dtps")
    for order in (("blocks.0", "blocks.2"), ("blocks.2", "blocks.0")):
        twice = graph
        for block in order:
            twice = insert_predictors(twice, {block: KEEP[block]}, "dtps")
        assert torch.equal(twice.module(images(2)), once.module(images(2)))


def test_a_predictor_alone_has_the_same_logits_and_parameters(graph: ModelGraph) -> None:
    squeezed = insert_predictors(graph, KEEP, "dtps")
    first, second = find_predictors(squeezed.module)
    module = predictor_module(squeezed.module, second)
    assert (
        module.get_parameter("vitslim.predictor.blocks.2.fc1.weight")
        is squeezed.parameters()["vitslim.predictor.blocks.2.fc1.weight"]
    )
    assert len(dict(module.named_parameters())) == 10
    tokens = torch.randn(3, 12, 64)
    prefix = "vitslim.predictor.blocks.2."
    weights = {n.removeprefix(prefix): p for n, p in squeezed.parameters().items() if n.startswith(prefix)}
    found = module(tokens).softmax(dim=-1)[..., 0]
    torch.testing.assert_close(found, predict_by_hand(tokens[:, 1:], weights))
    assert predictor_module(squeezed.module, first)(torch.randn(2, 17, 64)).shape == (2, 16, 2)


@pytest.mark.parametrize("method", ["dtps", "dynamicvit"])
def test_exports_with_constant_token_counts_and_equals_onnx_runtime(
    tiny_graph: ModelGraph, tmp_path: Path, method: str
) -> None:
    squeezed = insert_predictors(tiny_graph, {"blocks.0": 11, "blocks.1": 5}, method)
    module = squeezed.module
    path = export_onnx(squeezed, tmp_path / "model.onnx").path
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in loaded.graph.value_info}
    chosen = [shapes[n.output[0]] for n in loaded.graph.node if n.op_type in {"TopK", "GatherND"}]
    assert chosen
    assert all(size.HasField("dim_value") for shape in chosen for size in shape[1:])
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 2, 7):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), module(images(batch)).detach(), rtol=0, atol=1e-4)


def cut(graph: ModelGraph) -> ModelGraph:
    """Cut an axis of every kind."""
    sizes = {axis.name: axis.size for axis in graph.axes.prunable}
    return slice_axes(graph, {name: range(1, 1 + max(1, size // 2)) for name, size in sizes.items()})


@pytest.mark.parametrize("method", ["dtps", "dynamicvit"])
def test_axes_of_the_model_stay_the_same_and_permute(graph: ModelGraph, method: str) -> None:
    squeezed = insert_predictors(graph, KEEP, method)
    before = {axis.name: (axis.kind, axis.size) for axis in graph.axes.prunable}
    assert {axis.name: (axis.kind, axis.size) for axis in squeezed.axes.prunable} == before
    own = {a.name: a.frozen for a in squeezed.axes.axes if a.name.startswith("vitslim.predictor.blocks.2.")}
    assert set(own.values()) == {"belongs to a token predictor"}
    assert squeezed.axes.unknown_ops == graph.axes.unknown_ops
    assert verify_axes(squeezed).max_error < 1e-5


def test_a_model_with_predictors_can_be_sliced(graph: ModelGraph) -> None:
    smaller = cut(insert_predictors(graph, KEEP, "dtps"))
    assert smaller.parameters()["vitslim.predictor.blocks.2.fc1.weight"].shape == (64, 32)
    assert smaller.parameters()["vitslim.predictor.blocks.2.fc2.weight"].shape == (32, 64)
    assert smaller.module(images(2)).shape == (2, 10)
    assert find_anatomy(smaller).shapes[find_predictors(smaller.module)[1].squeeze] == (10007, 6, 32)


def test_a_block_with_a_predictor_can_be_removed(graph: ModelGraph) -> None:
    shallow = remove_blocks(insert_predictors(graph, KEEP, "dtps"), ["blocks.2"])
    assert shallow.module(images(2)).shape == (2, 10)
    assert [p.block for p in find_predictors(shallow.module)] == ["blocks.0", "blocks.2"]


@pytest.mark.parametrize("method", ["dtps", "dynamicvit"])
def test_a_saved_graph_is_equal_bit_for_bit(graph: ModelGraph, tmp_path: Path, method: str) -> None:
    squeezed = cut(insert_predictors(graph, KEEP, method))
    with torch.no_grad():
        for weight in squeezed.module.parameters():
            weight.add_(0.1 * torch.rand(weight.shape))
    save_graph(squeezed, tmp_path)
    loaded = load_graph(tmp_path)
    assert loaded.edits == squeezed.edits
    assert torch.equal(loaded.module(images(3)), squeezed.module(images(3)))


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
        insert_predictors(graph, keep, "dtps")


def test_a_block_is_squeezed_once(graph: ModelGraph) -> None:
    with pytest.raises(StageError, match=r"'blocks\.0' is already squeezed"):
        insert_predictors(insert_predictors(graph, KEEP, "dtps"), {"blocks.0": 4}, "dynamicvit")
