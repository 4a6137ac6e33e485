"""Files of each profile: what they store, and that they compute what the graph computes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vitslim.backends.measured.kernels import read_kernels
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE, Profile
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.annotate import LayerAnnotation
from vitslim.stages.export.check import OnnxFile, check_stored_weights, compare_outputs
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=60)


@pytest.fixture
def write(tiny_graph: ModelGraph, context: StageContext, tmp_path: Path) -> Callable[..., tuple[ModelGraph, Path]]:
    """Quantize the tiny graph by some keys and write it in a profile; checked against the graph."""

    def build(profile: Profile, **keys: Any) -> tuple[ModelGraph, Path]:
        graph = PtqStage(Ptq(method="ptq", **keys)).apply(tiny_graph, context).graph
        path = tmp_path / "model.onnx"
        export_onnx(graph, path, profile)
        check_stored_weights(path, graph)
        images = torch.stack([context.data.calibration[i][0] for i in range(17)])
        with torch.no_grad():
            parity = compare_outputs(graph.module(images), OnnxFile(path)(images))
        assert parity.sqnr_db > 20
        return graph, path

    return build


def zero_points(path: Path) -> set[int]:
    model = onnx.load(path)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {int(value) for node in nodes for value in values[node.input[2]].flatten()}


def annotations(path: Path) -> list[LayerAnnotation]:
    noted = {one.key: one.value for one in onnx.load(path).metadata_props}["vitslim.layers"]
    return [LayerAnnotation(**layer) for layer in json.loads(noted)]


def types(path: Path) -> Counter[int]:
    return Counter(tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1)


def kernels(path: Path) -> Counter[str]:
    return Counter(read_kernels(path, "the file").counts)


def test_portable_files_have_zero_points_of_zero(write: Any) -> None:
    graph, path = write(PORTABLE)
    unsigned = [s for edit in graph.edits for s in getattr(edit, "sites", ()) if s.zero_point is not None]
    assert unsigned
    assert zero_points(path) == {0}
    nodes = [
        node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear" and ".weight" in node.input[0]
    ]
    assert (
        max(Counter(node.input[2] for node in nodes if len(node.input) > 2).values()) == 1
    )  # OpenVINO multiplies then
    assert kernels(path)["MatMulIntegerToFloat"] == 9
    _, other = write(ORT_CPU)
    assert min(zero_points(other)) > 0  # signed integers became unsigned ones around 128
    assert kernels(other)["QGemm"] == 10  # the head too: its kernel adds the bias


def test_int4_is_stored_as_int4_and_runs_as_int8(write: Any) -> None:
    _, path = write(ORT_CPU, bits=4)
    assert types(path)[onnx.TensorProto.INT4] == 10
    assert types(path)[onnx.TensorProto.INT8] == 0
    assert kernels(path)["QGemm"] == 10


@pytest.mark.slow
def test_three_bits_are_stored_as_int4(write: Any) -> None:
    graph, path = write(PORTABLE, bits=3, activation_bits=6)
    assert types(path)[onnx.TensorProto.INT4] == 10
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert max(int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()) for t in stored) == 3
    assert sketch(graph).bits["head.weight"][:2] == (3, 6)
    clips = [node for node in onnx.load(path).graph.node if node.op_type == "Clip"]
    assert len(clips) == 9  # the image stays in float


@pytest.mark.parametrize("rounding", [pytest.param("nearest", marks=pytest.mark.slow), "gptq"])
def test_group_wise_weights_become_one_kernel(write: Any, rounding: str) -> None:
    _, path = write(PORTABLE, activations="float", bits=4, group_size=16, rounding=rounding)
    assert kernels(path)["MatMulNBits"] == 9


def test_float_activations_have_float_matmuls_and_integer_weights(write: Any) -> None:
    _, path = write(ORT_CPU, activations="float")
    found = kernels(path)
    assert types(path)[onnx.TensorProto.INT8] == 10
    assert found["MatMulIntegerToFloat"] == 0 and found["Cast"] == 0


def test_dynamic_activations_are_fused(write: Any) -> None:
    _, path = write(ORT_CPU, activations="dynamic")
    found = kernels(path)
    assert [output.name for output in onnx.load(path).graph.output] == ["logits"]
    assert found["DynamicQuantizeMatMul"] == 9
    assert found["QGemm"] == 1  # pixels have the same range in all images
    assert found["Add"] == 5  # to pixels, positions and residual additions: kernels add the biases
    assert inspect(path).violations == ()
    assert {(a.weight_bits, a.granularity) for a in annotations(path)} == {(8, "channel")}


@pytest.mark.slow
def test_padded_convolutions_keep_their_zero_point(tmp_path: Path) -> None:
    graph = trace_timm("resnet18", {"num_classes": 10})
    layers = layer_nodes(graph.module)
    padded = next(w for w, (node, *_) in layers.items() if any(argument(node, 4, "padding", [0])))
    site = FakeQuantSite(padded, 8, 8, zero_point=7)
    scales = {f"vitslim.q.{padded.removesuffix('.weight')}.input_scale": torch.tensor(0.05)}
    export_onnx(insert_fake_quant(graph, [site], scales), tmp_path / "model.onnx", PORTABLE)
    assert 7 in zero_points(tmp_path / "model.onnx")


@pytest.mark.slow
def test_half_precision_halves_the_file_and_keeps_float_input_and_output(
    tiny_graph: ModelGraph, context: StageContext
) -> None:
    whole = export_onnx(tiny_graph, context.workdir / "whole.onnx")
    half = ExportStage(Export(profile="fp16")).apply(tiny_graph, context)
    assert 1.8 < whole.bytes / half.metrics["onnx_bytes"] < 2.0
    assert half.metrics["parity_sqnr_db"] > 40
    model = onnx.load(context.workdir / "model.onnx")
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert {t.data_type for t in model.graph.initializer if len(t.dims) > 1} == {onnx.TensorProto.FLOAT16}
    assert half.skipped == () and [node.op_type for node in model.graph.node].count("Cast") == 2
    properties = {p.key: p.value for p in model.metadata_props}
    assert {layer["weight_bits"] for layer in json.loads(properties["vitslim.layers"])} == {16}
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph
    assert "is quantized" in ExportStage(Export(profile="fp16")).requires(sketch(quantized))[0].message


def test_layers_that_read_the_same_tensor_are_all_fused(
    digits_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    graph = trace_timm("convit_tiny", {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2,
                                       "local_up_to_layer": 1, "num_classes": 10})  # fmt: skip
    quantized = PtqStage(Ptq()).apply(graph, digits_context(graph)).graph
    readers = [argument(nodes[0], 0) for nodes in layer_nodes(graph.module).values()]
    assert max(Counter(readers).values()) > 1  # qk and v read the output of one norm
    export_onnx(quantized, tmp_path / "model.onnx")
    found = kernels(tmp_path / "model.onnx")
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == len(readers)
