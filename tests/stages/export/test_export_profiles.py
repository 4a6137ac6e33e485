"""What a file of each profile holds, and that it computes what the graph computes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from vitslim.backends.measured.kernels import read_kernels
from vitslim.backends.registry import Measured
from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect import inspect
from vitslim.progress import Silent
from vitslim.recipe.stages import Export, Floor, Ptq
from vitslim.results import Measurement
from vitslim.stages.contract import Measure, StageContext, StageResult
from vitslim.stages.export import placement
from vitslim.stages.export.annotate import LayerAnnotation, quantizer_sites
from vitslim.stages.export.check import OnnxFile, check_stored_weights, compare_logits
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.placement import choose_placement, floats_by_cost
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import predict
from vitslim.units import FLOAT_BITS


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=60)


@pytest.fixture
def write(tiny_graph: ModelGraph, context: StageContext, tmp_path: Path) -> Callable[..., tuple[ModelGraph, Path]]:
    """Quantize the tiny graph by some keys and write it for a target; checked against the graph."""

    def build(target: Any, **keys: Any) -> tuple[ModelGraph, Path]:
        graph = PtqStage(Ptq(method="ptq", **keys)).apply(tiny_graph, context).graph
        path = tmp_path / "model.onnx"
        export_onnx(graph, path, target)
        check_stored_weights(path, graph)
        images = torch.stack([context.data.calibration[i][0] for i in range(17)])
        with torch.no_grad():
            parity = compare_logits(graph.module(images), OnnxFile(path)(images))
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


def test_portable_files_have_zero_points_of_zero_and_the_same_codes(write: Any) -> None:
    graph, path = write("portable")
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
    _, other = write("ort-cpu")
    assert min(zero_points(other)) > 0  # signed codes became unsigned ones about 128
    assert kernels(other)["QGemm"] == 10  # the head too: the bias is added inside


def test_int4_is_stored_as_int4_and_runs_as_int8(write: Any) -> None:
    _, path = write("ort-cpu", bits=4)
    assert types(path)[onnx.TensorProto.INT4] == 10
    assert types(path)[onnx.TensorProto.INT8] == 0
    assert kernels(path)["QGemm"] == 10
    _, portable = write("portable", bits=4)
    assert types(portable)[onnx.TensorProto.INT4] == 10


def test_three_bits_lie_in_four(write: Any) -> None:
    graph, path = write("portable", bits=3, input_bits=6)
    stored = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert max(int(np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()) for t in stored) == 3
    assert sketch(graph).bits["head.weight"][:2] == (3, 6)
    clips = [node for node in onnx.load(path).graph.node if node.op_type == "Clip"]
    assert len(clips) == 9  # the image stays in float


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_blocks_become_one_kernel(write: Any, rounding: str) -> None:
    _, path = write("portable", activations="float", bits=4, block=16, rounding=rounding)
    assert kernels(path)["MatMulNBits"] == 9


def test_float_inputs_have_float_products_and_integer_files(write: Any) -> None:
    _, path = write("ort-cpu", activations="float")
    found = kernels(path)
    assert types(path)[onnx.TensorProto.INT8] == 10
    assert found["MatMulIntegerToFloat"] == 0 and found["Cast"] == 0


def test_dynamic_inputs_are_fused(write: Any) -> None:
    _, path = write("ort-cpu", activations="dynamic")
    found = kernels(path)
    assert [output.name for output in onnx.load(path).graph.output] == ["logits"]
    assert found["DynamicQuantizeMatMul"] == 9
    assert found["QGemm"] == 1  # pixels have one range for all images
    assert found["Add"] == 5  # to pixels, positions and residual additions: biases are added inside
    assert inspect(path).violations == ()
    assert {(a.weight_bits, a.granularity) for a in annotations(path)} == {(8, "channel")}


def test_padded_convolutions_keep_their_zero_point(tmp_path: Path) -> None:
    graph = trace_timm("resnet18", {"num_classes": 10})
    layers = layer_nodes(graph.module)
    padded = next(w for w, (node, *_) in layers.items() if any(argument(node, 4, "padding", [0])))
    site = FakeQuantSite(padded, 8, 8, zero_point=7)
    scales = {f"vitslim.q.{padded.removesuffix('.weight')}.input_scale": torch.tensor(0.05)}
    export_onnx(insert_fake_quant(graph, [site], scales), tmp_path / "model.onnx", "portable")
    assert 7 in zero_points(tmp_path / "model.onnx")


def measured_once(files: Mapping[str, Path]) -> dict[str, Measurement]:
    found = Measured("onnxruntime:cpu").measure(files, next(iter(files)), (1,), (1,), 0.05, Silent())
    return {name: rows[0] for name, rows in found.items()}


def test_auto_measures_and_keeps_the_floor(tiny_graph: ModelGraph, context: StageContext) -> None:
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph
    measured: list[str] = []

    def measure(files: Mapping[str, Path]) -> dict[str, Measurement]:
        measured.extend(files)
        return measured_once(files)

    there = replace(context, measure=Measure(1, measure), result=lambda name: StageResult(tiny_graph))
    stage = ExportStage(Export(profile="auto", floor=Floor(sqnr_db=20.0, agreement=0.5)))
    result = stage.apply(quantized, there)
    assert measured == ["static", "dynamic"]  # both hold so low a floor with every input in codes
    chosen = [note for note in result.changes if note.reason == "chosen"]
    assert len(chosen) == 1 and "dB" in chosen[0].result
    assert (there.workdir / "model.onnx").is_file()
    assert [path.name for path in there.workdir.iterdir()] == ["model.onnx"]
    impossible = ExportStage(Export(profile="auto", floor=Floor(sqnr_db=200.0)))
    assert any("none holds 200 dB" in note.reason for note in impossible.apply(quantized, there).changes)


def test_auto_keeps_the_zero_points_of_blocks(tiny_graph: ModelGraph, context: StageContext) -> None:
    keys: dict[str, Any] = {"bits": 4, "group_size": 16, "activations": "float", "zero_points": True}
    quantized = PtqStage(Ptq(**keys)).apply(tiny_graph, context).graph
    there = replace(context, measure=Measure(1, measured_once), result=lambda name: StageResult(tiny_graph))
    chosen = ExportStage(Export(profile="auto", floor=Floor(sqnr_db=0.0, agreement=0.0))).apply(quantized, there).graph
    images = torch.stack([context.data.calibration[i][0] for i in range(4)])
    with torch.no_grad():
        assert torch.equal(chosen.module(images), quantized.module(images))


def test_auto_places_quantizers_beside_blocks(tiny_graph: ModelGraph, context: StageContext) -> None:
    quantized = PtqStage(Ptq(bits=4, group_size=16)).apply(tiny_graph, context).graph
    there = replace(context, measure=Measure(1, measured_once), result=lambda name: StageResult(tiny_graph))
    closest = ExportStage(Export(profile="auto", floor=Floor(sqnr_db=200.0))).apply(quantized, there)
    assert any("none holds 200 dB" in note.reason for note in closest.changes)
    blocks = [site for site in quantizer_sites(closest.graph).values() if site.group_size]
    assert all(site.integer_scales for site in blocks) and any(site.activation_bits == FLOAT_BITS for site in blocks)
    assert inspect(there.workdir / "model.onnx").violations == ()


def test_auto_leaves_more_in_float_where_a_file_is_worse_than_its_graph(
    tiny_graph: ModelGraph, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph

    def spoilt(path: Path, exact: bool) -> Any:
        file = OnnxFile(path, exact=exact)
        return file if " in float" in path.name else lambda images: -file(images)

    monkeypatch.setattr(placement, "OnnxFile", spoilt)
    there = replace(context, measure=Measure(1, measured_once), result=lambda name: StageResult(tiny_graph))
    best, found = choose_placement(quantized, Floor(sqnr_db=20.0, agreement=0.5), context.data.calibration, there)
    assert {re.sub("[0-9]+", "N", one.name) for one in found} == {"static, N in float", "dynamic, N in float"}
    assert best.latency_ms == min(one.latency_ms or 0 for one in found)


def test_what_takes_most_noise_for_its_cost_stays_in_float_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "IN_FLOAT", (0.0, 0.05, 0.12, 0.5, 1.0))
    noise = {"harmless": 0.0, "harmful": 0.5, "cheap": 0.2, "free": 0.1}
    costs = {"harmless": 35, "harmful": 45, "cheap": 9, "free": 1}
    # Half of all has no room for the harmful one beside those before it, but for the harmless one.
    assert floats_by_cost(noise, costs) == [
        (), ("free",), ("free", "cheap"), ("free", "cheap", "harmless"), ("free", "cheap", "harmful", "harmless")
    ]  # fmt: skip


def test_layers_whose_tokens_nothing_reads_cost_what_is_left_of_them(tiny_graph: ModelGraph) -> None:
    costs = placement._multiplications(tiny_graph)
    tokens, width = 17, 64
    first, last = (costs[f"blocks.{block}.mlp.fc2.weight"] for block in (0, 1))
    assert first == tokens * 4 * width * width and last * tokens == first


def test_auto_judges_in_batches_as_they_are_measured(
    tiny_graph: ModelGraph, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dynamic ranges are those of a batch: a larger one has wider ranges, and its outputs are further off."""
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph
    sizes: list[int] = []

    def noted(model: Any, images: Any, batch: int, *rest: Any) -> Any:
        sizes.append(batch)
        return predict(model, images, batch, *rest)

    monkeypatch.setattr(placement, "predict", noted)
    there = replace(context, measure=Measure(3, measured_once), result=lambda name: StageResult(tiny_graph))
    choose_placement(quantized, Floor(sqnr_db=20.0, agreement=0.5), context.data.calibration, there)
    assert len(sizes) == 5 and set(sizes) == {3}


def test_auto_needs_quantizers_and_something_that_measures(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = ExportStage(Export(profile="auto"))
    assert "nothing is quantized" in stage.requires(sketch(tiny_graph))[0].message
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph
    with pytest.raises(StageError, match="measures"):
        stage.apply(quantized, context)


def test_half_precision_halves_the_file_and_keeps_its_type_outside(
    tiny_graph: ModelGraph, context: StageContext
) -> None:
    whole = ExportStage(Export()).apply(tiny_graph, context)
    half = ExportStage(Export(profile="fp16")).apply(tiny_graph, context)
    assert 1.8 < whole.metrics["onnx_bytes"] / half.metrics["onnx_bytes"] < 2.0
    assert half.metrics["parity_sqnr_db"] > 40
    model = onnx.load(context.workdir / "model.onnx")
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert {t.data_type for t in model.graph.initializer if len(t.dims) > 1} == {onnx.TensorProto.FLOAT16}
    properties = {p.key: p.value for p in model.metadata_props}
    assert {layer["weight_bits"] for layer in json.loads(properties["vitslim.layers"])} == {16}
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph
    assert "is quantized" in ExportStage(Export(profile="fp16")).requires(sketch(quantized))[0].message


def test_the_file_knows_its_classes(tiny_graph: ModelGraph, context: StageContext) -> None:
    ExportStage(Export()).apply(tiny_graph, context)
    properties = {p.key: p.value for p in onnx.load(context.workdir / "model.onnx").metadata_props}
    assert json.loads(properties["vitslim.class_names"]) == list(context.data.calibration.class_names)
    assert len(context.data.calibration.class_names) == 10


def test_layers_that_read_one_tensor_are_all_fused(digits_context: Callable[..., StageContext], tmp_path: Path) -> None:
    graph = trace_timm("convit_tiny", {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2,
                                       "local_up_to_layer": 1, "num_classes": 10})  # fmt: skip
    quantized = PtqStage(Ptq()).apply(graph, digits_context(graph)).graph
    readers = [argument(nodes[0], 0) for nodes in layer_nodes(graph.module).values()]
    assert max(Counter(readers).values()) > 1  # qk and v read what one norm gives
    export_onnx(quantized, tmp_path / "model.onnx")
    found = kernels(tmp_path / "model.onnx")
    assert found["MatMulIntegerToFloat"] + found["QGemm"] == len(readers)
