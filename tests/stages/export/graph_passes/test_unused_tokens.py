"""Unused tokens are not computed."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import draw_weights
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE, Profile
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.check import OnnxFile
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.token_metadata import token_squeezes
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import sqnr_db

SMALL: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 10,
}


def rows(graph: ModelGraph) -> dict[str, int]:
    """Map each weight to the rows that its linear layer computes for an image."""
    shapes = tensor_shapes(graph.module, graph.source.image)
    linears = [n for n in graph.module.graph.nodes if n.target is torch.ops.aten.linear.default]
    return {str(n.args[1].target): prod(shapes[n][:-1]) // BATCH for n in linears}


def narrowed(graph: ModelGraph) -> ModelGraph:
    copy = graph.copy()
    remove_unused_tokens(copy)
    images = torch.randn(3, *graph.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(copy.module(images), graph.module(images), rtol=1e-4, atol=1e-5)
    return copy


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("vit_tiny_patch16_224", {}), ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1}),
     ("vit_small_patch14_dinov2", {})],
)  # fmt: skip
def test_the_last_block_computes_only_the_class_token(name: str, kwargs: dict[str, Any]) -> None:
    graph = trace_timm(name, SMALL | kwargs)
    draw_weights(graph.module, torch.Generator().manual_seed(0))
    before, after = rows(graph), rows(narrowed(graph))
    less = {weight for weight in before if after[weight] < before[weight]}
    assert less == {f"blocks.1.{layer}.weight" for layer in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {after[weight] for weight in less} == {1}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("vit_tiny_patch16_224", SMALL | {"global_pool": "avg"}), ("deit_tiny_distilled_patch16_224", SMALL),
     ("swin_tiny_patch4_window7_224", {"depths": (1, 1), "embed_dim": 48})],
)  # fmt: skip
def test_a_graph_without_unused_tokens_stays_the_same(name: str, kwargs: dict[str, Any]) -> None:
    graph = trace_timm(name, kwargs)
    assert rows(narrowed(graph)) == rows(graph)


@pytest.mark.parametrize("index", [5, -1])
def test_any_token_can_be_the_used_one(tiny_graph: ModelGraph, index: int) -> None:
    other = tiny_graph.copy()
    (read,) = (node for node in other.module.graph.nodes if node.target is torch.ops.aten.select.int)
    read.update_arg(2, index)
    other.module.recompile()
    assert rows(narrowed(other))["blocks.1.mlp.fc2.weight"] == 1


def test_several_tokens_can_be_used(tiny_graph: ModelGraph) -> None:
    other = tiny_graph.copy()
    (read,) = (node for node in other.module.graph.nodes if node.target is torch.ops.aten.select.int)
    with other.module.graph.inserting_before(read):
        few = other.module.graph.call_function(torch.ops.aten.slice.Tensor, (read.args[0], 1, 5, 9))
        mean = other.module.graph.call_function(torch.ops.aten.mean.dim, (few, [1]))
    read.replace_all_uses_with(mean)
    other.module.graph.erase_node(read)
    other.module.recompile()
    assert rows(narrowed(other))["blocks.1.mlp.fc2.weight"] == 4


@pytest.mark.parametrize(
    ("inputs", "profiles"),
    [("static", [PORTABLE, ORT_CPU]), pytest.param("dynamic", [ORT_CPU], marks=pytest.mark.slow)],
)
def test_a_quantized_file_for_onnx_runtime_has_the_logits_of_the_graph(
    inputs: str,
    profiles: list[Profile],
    tiny_graph: ModelGraph,
    digits_context: Callable[..., StageContext],
    tmp_path: Path,
) -> None:
    context = digits_context(tiny_graph, calibration=130)
    graph = PtqStage(Ptq(activations=inputs)).apply(tiny_graph, context).graph  # type: ignore[arg-type]
    images = torch.stack([context.data.calibration[i][0] for i in range(5)])
    with torch.no_grad():
        expected = graph.module(images)
    for profile in profiles:
        export_onnx(graph, tmp_path / "model.onnx", profile)
        assert sqnr_db(expected, OnnxFile(tmp_path / "model.onnx")(images)) > 25
        assert hidden_rows(tmp_path / "model.onnx") == 1


@pytest.mark.parametrize(("profile", "tokens"), [(PORTABLE, 17), (ORT_CPU, 1)])
def test_a_float_file_for_onnx_runtime_computes_one_token(
    profile: Profile, tokens: int, tiny_graph: ModelGraph, tmp_path: Path
) -> None:
    export_onnx(tiny_graph, tmp_path / "model.onnx", profile)
    assert hidden_rows(tmp_path / "model.onnx") == tokens


def hidden_rows(path: Path) -> int:
    """Rows that the last GELU of a file computes for one image."""
    model = onnx.load(path)
    output = [node for node in model.graph.node if node.op_type == "Gelu"][-1].output[0]
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    (hidden,) = session.run([output], {image.name: np.zeros((1, *image.shape[1:]), np.float32)})
    return int(np.prod(hidden.shape[:-1]))


@pytest.mark.parametrize("method", ["etps", "tome"])
def test_a_squeeze_before_which_only_the_class_token_is_read_is_removed(tiny_graph: ModelGraph, method: str) -> None:
    if method == "tome":
        squeezed = merge_tokens(tiny_graph, "tome", {"blocks.0": KeptTokens(16, 12), "blocks.1": KeptTokens(12, 9)})
    else:
        squeezed = insert_squeeze(tiny_graph, {"blocks.0": 12, "blocks.1": 9})
    found = narrowed(squeezed)
    kept = [block.squeeze is not None for block in find_anatomy(found).blocks]
    assert kept == [True, False]
    assert token_squeezes(squeezed, found) == {"blocks.0": f"17 to 13 tokens ({method})"}
    assert rows(found)["blocks.1.attn.proj.weight"] == rows(found)["blocks.1.mlp.fc1.weight"] == 1
    assert rows(found)["blocks.1.attn.qkv.weight"] == rows(found)["blocks.0.mlp.fc1.weight"] == 13
