"""The ONNX file: its results, its stored weights and its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite, Mask
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Export, Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import (
    OnnxFile,
    check_parity,
    check_stored_weights,
    compare_outputs,
)
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.export.stage import ExportStage
from vitslim.stages.prune.two_four.patterns import pattern_mask
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.workload import read_workload

LAYERS = {"MatMul", "Gemm", "Conv"}


def context_for(graph: ModelGraph, folder: Path) -> StageContext:
    def no_result(name: str) -> StageResult:
        raise StageError(f"no stage {name}")

    data = load_data(Data(kind="digits", calibration=64), graph.source, seed=0)
    return StageContext(data, 0, Silent(), no_result, folder)


def images_for(graph: ModelGraph, count: int = 5) -> torch.Tensor:
    return torch.randn(count, *graph.source.image, generator=torch.Generator().manual_seed(0))


def logits_of(graph: ModelGraph, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = graph.module(images)
    return logits


def mask_two_four(graph: ModelGraph, *weights: str) -> ModelGraph:
    new = graph.copy()
    with torch.no_grad():
        for name in weights:
            parameter = new.parameters()[name]
            new.masks[name] = pattern_mask(parameter.abs())
            parameter.mul_(new.masks[name])
    new.edits = (*new.edits, Mask("2:4", weights))
    return new


def initializers(model: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def session_context(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return context_for(tiny_session_graph, tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def sparse_int8(tiny_session_graph: ModelGraph, session_context: StageContext) -> ModelGraph:
    """Quantized, with 2:4 weights in one linear."""
    sparse = mask_two_four(tiny_session_graph, "blocks.0.mlp.fc1.weight")
    return PtqStage(Ptq(method="ptq")).apply(sparse, session_context).graph


@pytest.fixture(scope="module")
def float_file(tiny_session_graph: ModelGraph, session_context: StageContext) -> Path:
    return export_onnx(tiny_session_graph, session_context.workdir / "float.onnx").path


@pytest.fixture(scope="module")
def int8_file(sparse_int8: ModelGraph, session_context: StageContext) -> Path:
    return export_onnx(sparse_int8, session_context.workdir / "int8.onnx").path


@pytest.mark.parametrize("count", [1, 3, 5])
def test_float_file_computes_the_graph_at_any_batch(
    tiny_session_graph: ModelGraph, float_file: Path, count: int
) -> None:
    images = images_for(tiny_session_graph, count)
    torch.testing.assert_close(OnnxFile(float_file)(images), logits_of(tiny_session_graph, images), rtol=0, atol=1e-5)


def test_the_file_follows_the_standard_and_has_documented_names(float_file: Path, int8_file: Path) -> None:
    for path in (float_file, int8_file):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 10
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
        (image,), (logits,) = model.graph.input, model.graph.output
        assert (image.name, logits.name) == ("pixel_values", "logits")
        assert image.type.tensor_type.shape.dim[0].dim_param == "batch_size"
        assert [d.dim_value for d in image.type.tensor_type.shape.dim[1:]] == [3, 32, 32]


def test_float_graph_is_lean(float_file: Path) -> None:
    operators = [node.op_type for node in onnx.load(float_file).graph.node]
    assert not {"Constant", "Identity", "Cast", "CastLike", "Slice", "Squeeze", "Sqrt", "Erf"} & set(operators)
    for name, count in {"Shape": 1, "Split": 2, "LayerNormalization": 5, "Gelu": 2, "Softmax": 2, "Mul": 2}.items():
        assert operators.count(name) == count, name


def test_the_file_contains_no_trace_of_the_exporting_machine(float_file: Path) -> None:
    content = float_file.read_bytes()
    for trace in (b".py", b"stack_trace", b"site-packages", str(Path.cwd()).encode()):
        assert trace not in content


def test_same_graph_gives_the_same_bytes(sparse_int8: ModelGraph, int8_file: Path, tmp_path: Path) -> None:
    assert export_onnx(sparse_int8, tmp_path / "again.onnx").path.read_bytes() == int8_file.read_bytes()


def test_quantized_weights_are_integers_only(sparse_int8: ModelGraph, float_file: Path, int8_file: Path) -> None:
    stored = initializers(onnx.load(int8_file))
    for name in layer_nodes(sparse_int8.module):
        assert stored[name].dtype == np.int8, name
        assert np.abs(stored[name].astype(int)).max() <= 127
    shapes = {tuple(sorted(stored[name].shape)) for name in layer_nodes(sparse_int8.module)}
    floats = [a for a in stored.values() if a.dtype == np.float32 and a.ndim > 1]
    assert not [array.shape for array in floats if tuple(sorted(array.shape)) in shapes]
    assert int8_file.stat().st_size < 0.36 * float_file.stat().st_size


def test_only_input_activations_of_layers_are_quantized(sparse_int8: ModelGraph, int8_file: Path) -> None:
    model = onnx.load(int8_file)
    users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node, index))
    quantize = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantize) == len(layer_nodes(sparse_int8.module))
    for node in quantize:
        ((dequantize, _),) = users[node.output[0]]
        assert dequantize.op_type == "DequantizeLinear"
        assert all(user.op_type in LAYERS and index == 0 for user, index in users[dequantize.output[0]])


def test_integers_of_every_layer_are_those_of_the_graph(sparse_int8: ModelGraph, int8_file: Path) -> None:
    """On the same input, layer by layer: end-to-end closeness is no test, because flipped roundings cascade."""
    model = onnx.load(int8_file)
    quantize = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    wanted = [name for node in quantize for name in (node.input[0], node.output[0])]
    for name in wanted:
        if name != "pixel_values":
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    images = images_for(sparse_int8).numpy()
    computed = session.run(None, {"pixel_values": images})
    values = dict(zip((o.name for o in session.get_outputs()), computed, strict=True))
    values["pixel_values"] = images
    stored = initializers(model)
    for node in quantize:
        x, scale = torch.from_numpy(values[node.input[0]]), torch.tensor(stored[node.input[1]])
        expected = torch.clamp(torch.round(x / scale), -128, 127)
        assert torch.equal(expected, torch.from_numpy(values[node.output[0]]).float()), node.name


def test_int8_file_predicts_what_the_graph_predicts(sparse_int8: ModelGraph, int8_file: Path) -> None:
    images = images_for(sparse_int8, 32)
    parity = compare_outputs(logits_of(sparse_int8, images), OnnxFile(int8_file)(images))
    check_parity(parity, exact=False)
    assert parity.sqnr_db > 15


def test_metadata_describes_the_file(sparse_int8: ModelGraph, int8_file: Path) -> None:
    model = onnx.load(int8_file)
    about = {prop.key: prop.value for prop in model.metadata_props}
    assert about["vitslim.model"] == "vit_tiny_patch16_224"
    assert json.loads(about["vitslim.input_size"]) == [3, 32, 32]
    assert json.loads(about["vitslim.mean"]) == [0.5, 0.5, 0.5]
    assert about["vitslim.interpolation"] == "bicubic"
    layers = {entry["layer"]: entry for entry in json.loads(about["vitslim.layers"])}
    assert layers.keys() == layer_nodes(sparse_int8.module).keys()
    noted = layers["blocks.0.mlp.fc1.weight"]
    scales = {leaf: tensor_of(sparse_int8.module, f"vitslim.q.blocks.0.mlp.fc1.{leaf}_scale").detach()
              for leaf in ("weight", "input")}  # fmt: skip
    assert noted.pop("weight_limit") == pytest.approx(127 * float(scales["weight"].max()))
    low, high = noted.pop("activation_limits")
    assert high - low == pytest.approx(255 * float(scales["input"]))
    assert noted == {
        "layer": "blocks.0.mlp.fc1.weight",
        "weight_bits": 8,
        "activation_bits": 8,
        "sparsity": "2:4",
        "granularity": "channel",
        "format": "",
    }
    assert {name for name, entry in layers.items() if entry["sparsity"]} == {"blocks.0.mlp.fc1.weight"}
    noted = [{p.key: p.value for p in n.metadata_props} for n in model.graph.node if n.op_type in LAYERS]
    nodes = {props["vitslim.layer"]: props for props in noted if props}
    assert nodes["blocks.0.mlp.fc1.weight"]["vitslim.sparsity"] == "2:4"
    assert nodes["head.weight"]["vitslim.weight_bits"] == "8"


def test_a_reader_finds_the_annotated_bits_and_pattern(int8_file: Path) -> None:
    found = {operator.layer: operator for operator in read_workload(int8_file, batch=1).operators if operator.weight}
    assert len(found) == 10
    assert all((operator.weight_bits, operator.activation_bits) == (8, 8) for operator in found.values())
    assert found["blocks.0.mlp.fc1"].sparsity == "2:4"


def test_narrow_ranges_keep_within_their_bits(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    weight = "blocks.1.mlp.fc1.weight"
    scales = {
        "vitslim.q.blocks.1.mlp.fc1.weight_scale": torch.full((256,), 0.005),
        "vitslim.q.blocks.1.mlp.fc1.input_scale": torch.tensor(0.2),
    }
    quantized = insert_fake_quant(tiny_graph, [FakeQuantSite(weight, 4, 4)], scales)
    summary = export_onnx(quantized, tmp_path / "narrow.onnx")
    integers = initializers(onnx.load(summary.path))[weight]
    assert (integers.min(), integers.max()) == (-7, 7)
    images = images_for(tiny_graph)
    torch.testing.assert_close(OnnxFile(summary.path)(images), logits_of(quantized, images), rtol=0, atol=2e-3)
    assert weight not in summary.unquantized and len(summary.unquantized) == 9


def test_weights_can_be_2_4_in_float(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    sparse = mask_two_four(tiny_graph, "head.weight")
    summary = export_onnx(sparse, tmp_path / "sparse.onnx")
    (head,) = (a for a in summary.annotations if a.layer == "head.weight")
    assert (head.sparsity, head.weight_bits, head.granularity) == ("2:4", 32, "")


def test_the_stage_writes_and_checks_the_file(sparse_int8: ModelGraph, tmp_path: Path) -> None:
    stage = ExportStage(Export())
    result = stage.apply(sparse_int8, context_for(sparse_int8, tmp_path))
    assert stage.ensures(sparse_int8, result.graph) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert result.metrics["onnx_bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert result.metrics["parity_images"] == 64
    assert result.metrics["parity_agreement"] > 0.9
    whats = {note.layer: note.result for note in result.changes}
    assert whats["blocks.0.mlp.fc1.weight"] == "INT8 per channel, 2:4"
    assert whats["head.weight"] == "INT8 per channel"


def test_float_stage_reports_exact_parity_and_names_the_classes(tiny_graph: ModelGraph, tmp_path: Path) -> None:
    context = context_for(tiny_graph, tmp_path)
    result = ExportStage(Export()).apply(tiny_graph, context)
    assert result.metrics["parity_max_abs_error"] < 1e-5
    assert result.metrics["parity_agreement"] == 1
    assert result.changes == () and result.skipped == ()
    properties = {p.key: p.value for p in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(properties["vitslim.class_names"]) == list(context.data.calibration.class_names)
    assert len(context.data.calibration.class_names) == 10


def test_another_models_file_is_caught(sparse_int8: ModelGraph, int8_file: Path) -> None:
    other = sparse_int8.copy()
    with torch.no_grad():
        other.parameters()["head.weight"][0, 0] += 1.0
    with pytest.raises(StageError, match=r"stored for .head\.weight."):
        check_stored_weights(int8_file, other)


def test_a_broken_mask_is_caught(tiny_session_graph: ModelGraph, float_file: Path) -> None:
    sparse = mask_two_four(tiny_session_graph, "head.weight")
    with torch.no_grad():
        sparse.parameters()["head.weight"].copy_(tiny_session_graph.parameters()["head.weight"])
    with pytest.raises(StageError, match="not 2:4"):
        check_stored_weights(float_file, sparse)
