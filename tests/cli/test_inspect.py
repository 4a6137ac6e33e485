"""`vitslim inspect` on an exported file, on variants of it that violate its claims, and on damaged files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import save_graph
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.units import PAIR_LIMIT

Run = Callable[..., Any]
WEIGHT = "blocks.1.mlp.fc1.weight"


@pytest.fixture(scope="module")
def run_folder(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and the graph of a run with every layer in INT8 and approximate scales."""
    folder = tmp_path_factory.mktemp("run")
    graph = tiny_session_graph
    weights = layer_nodes(graph.module)
    scales = {}
    for index, name in enumerate(weights):
        tensor, layer = graph.parameters()[name].detach(), name.removesuffix(".weight")
        scales[f"vitslim.q.{layer}.weight_scale"] = tensor.abs().flatten(1).amax(dim=1).clamp(min=1e-6) / 127
        scales[f"vitslim.q.{layer}.input_scale"] = tensor.new_tensor(0.03 + index / 1000)  # equal ones get merged
    quantized = insert_fake_quant(graph, [FakeQuantSite(name, 8, 8) for name in weights], scales)
    export_onnx(quantized, folder / "model.onnx")
    save_graph(quantized, folder)
    return folder


def changed(folder: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, target)
    return target


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def annotations(model: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """Yield the metadata of the node of a weight."""
    for node in model.graph.node:
        if any(prop.key == "vitslim.layer" and prop.value == WEIGHT for prop in node.metadata_props):
            yield from node.metadata_props


def claim_two_four(model: onnx.ModelProto) -> None:
    next(prop for prop in annotations(model) if prop.key == "vitslim.sparsity").value = "2:4"
    listed = next(prop for prop in model.metadata_props if prop.key == "vitslim.layers")
    entries = json.loads(listed.value)
    next(entry for entry in entries if entry["layer"] == WEIGHT)["sparsity"] = "2:4"
    listed.value = json.dumps(entries)


def add_a_stray_annotation(model: onnx.ModelProto) -> None:
    listed = next(prop for prop in model.metadata_props if prop.key == "vitslim.layers")
    entries = json.loads(listed.value)
    listed.value = json.dumps([*entries, {**entries[0], "layer": "blocks.9.mlp.fc1.weight"}])


def shift_the_zero_point(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == WEIGHT)
    zeros = numpy_helper.to_array(initializer(model, node.input[2]))
    model.graph.initializer.append(numpy_helper.from_array(np.full_like(zeros, 3), "shifted"))
    node.input[2] = "shifted"


def set_a_scale_to_nan(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == WEIGHT)
    tensor = initializer(model, node.input[1])
    values = numpy_helper.to_array(tensor).copy()
    values[7] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def clip_the_integers(model: onnx.ModelProto) -> None:
    """Insert a Clip between Q and DQ, which ONNX Runtime does not fuse."""
    node = next(n for n in model.graph.node if n.op_type == "MatMul" and any(
        p.value == WEIGHT for p in n.metadata_props))  # fmt: skip
    place = next(i for i, n in enumerate(model.graph.node) if node.input[0] in n.output)
    dequantize = model.graph.node[place]
    for name, value in {"low": -100, "high": 100}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.int8(value), name))
    clip = onnx.helper.make_node("Clip", [dequantize.input[0], "low", "high"], ["clipped"], "clip")
    dequantize.input[0] = "clipped"
    model.graph.node.insert(place, clip)


VIOLATING: dict[Callable[[onnx.ModelProto], None], tuple[str, str]] = {
    claim_two_four: ("2:4 weights", "runs have too few zeros"),
    add_a_stray_annotation: ("an annotated layer is in the graph", "no layer of this name"),
    shift_the_zero_point: ("8-bit weights, integers from -127 to 127", "integers from -130 to"),
    set_a_scale_to_nan: ("scales are positive and finite", "1 of 256"),
    clip_the_integers: ("a matmul between Q/DQ runs on integers", "ONNX Runtime runs MatMul on floats"),
}


def test_the_file_of_a_run_has_no_violations(vitslim: Run, run_folder: Path) -> None:
    shown = vitslim("inspect", run_folder, "--verify")
    assert shown.code == 0
    assert "no violations (10 annotated layers, 10 matmuls between Q/DQ)" in shown.out
    assert "opset 21, IR 10, written by vitslim" in shown.out
    assert "processors 10 layers may saturate 16-bit sums on CPUs without VNNI" in " ".join(shown.out.split())
    assert ["blocks.0-1.attn.qkv", "2", "W8A8"] in [line.split()[:3] for line in shown.out.splitlines()]
    assert "MatMulIntegerToFloat 9" in " ".join(shown.out.split())
    for line in ("input_size     3, 32, 32", "interpolation  bicubic", "classes        10"):
        assert line in shown.out
    assert max(map(len, shown.out.splitlines()[1:])) <= 80


def test_json_has_every_layer(vitslim: Run, run_folder: Path) -> None:
    found = json.loads(vitslim("inspect", run_folder / "model.onnx", "--format", "json").out)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert len(layers) == 10
    fc1 = layers["blocks.1.mlp.fc1"]
    assert (fc1["weight_bits"], fc1["activation_bits"], fc1["kernel"]) == (8, 8, "MatMulIntegerToFloat")
    assert (fc1["device_bytes"], fc1["stored_bytes"], fc1["granularity"]) == (256 * 64, 256 * 64, "channel")
    assert layers["head"]["kernel"] == "QGemm"
    assert fc1["pair_sum_max"] > PAIR_LIMIT and fc1["may_saturate_int16"]
    assert found["stored_bytes"] == (run_folder / "model.onnx").stat().st_size
    assert found["violations"] == []
    assert sum(found["operators"].values()) == len(onnx.load(run_folder / "model.onnx").graph.node)


@pytest.mark.parametrize("change", VIOLATING, ids=lambda change: change.__name__)
def test_violations_are_listed(
    vitslim: Run, run_folder: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    claim, words = VIOLATING[change]
    path = changed(run_folder, tmp_path / "changed.onnx", change)
    outcome = vitslim("inspect", path, "--verify", "--format", "json")
    assert outcome.code == 1
    assert "violates 1 of its claims" in outcome.err
    assert "hint:" in outcome.err
    (violation,) = json.loads(outcome.out)["violations"]
    assert violation["layer"] in {"blocks.1.mlp.fc1", "blocks.9.mlp.fc1.weight"}
    assert violation["claim"] == claim
    assert words in violation["found"]


def test_without_verify_a_violation_is_only_shown(vitslim: Run, run_folder: Path, tmp_path: Path) -> None:
    outcome = vitslim("inspect", changed(run_folder, tmp_path / "changed.onnx", claim_two_four))
    assert outcome.code == 0
    assert "1 violation" in outcome.out
    assert "not 2:4" in outcome.out


def test_integers_are_those_of_the_graph(
    vitslim: Run, run_folder: Path, tmp_path: Path, tiny_session_graph: ModelGraph
) -> None:
    found = inspect(run_folder, layers=True)
    assert {one.layer for one in found.differences} == {name[:-7] for name in layer_nodes(tiny_session_graph.module)}
    assert {(one.activations, one.weights) for one in found.differences} == {(0.0, 0.0)}
    assert found.violations == ()
    for name in ("graph.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    changed(run_folder, tmp_path / "model.onnx", shift_the_input_scale)
    outcome = vitslim("inspect", tmp_path, "--layers", "--verify")
    assert outcome.code == 1
    assert "activation integers equal the graph's" in " ".join(outcome.out.split())


def test_integers_of_shifted_activations_are_those_of_the_graph(tiny_session_graph: ModelGraph, tmp_path: Path) -> None:
    """The file subtracts a constant and stores signed integers for unsigned ones; here both limits also saturate."""
    name = "blocks.1.mlp.fc2.weight"
    weight = tiny_session_graph.parameters()[name].detach()
    scales = {
        "vitslim.q.blocks.1.mlp.fc2.weight_scale": weight.abs().amax(dim=1) / 127,
        "vitslim.q.blocks.1.mlp.fc2.input_scale": weight.new_tensor(0.0005),
    }
    quantized = insert_fake_quant(tiny_session_graph, [FakeQuantSite(name, 8, 8, zero_point=90)], scales)
    export_onnx(quantized, tmp_path / "model.onnx")
    save_graph(quantized, tmp_path)
    (difference,) = inspect(tmp_path, layers=True).differences
    assert (difference.activations, difference.weights) == (0.0, 0.0)
    changed(tmp_path, tmp_path / "model.onnx", change_the_subtracted_constant)
    (difference,) = inspect(tmp_path, layers=True).differences
    assert difference.activations is not None
    assert difference.activations > 0.1


def change_the_subtracted_constant(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Sub")
    tensor = initializer(model, node.input[1])
    assert numpy_helper.to_array(tensor) == pytest.approx(0.0005 * (128 - 90))
    tensor.CopyFrom(numpy_helper.from_array(np.float32(0.0005 * 40), tensor.name))


def shift_the_input_scale(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "vitslim.q.blocks.1.mlp.fc1.input_scale")
    tensor.CopyFrom(numpy_helper.from_array(np.float32(0.05), tensor.name))


def test_layers_need_a_saved_graph(vitslim: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").write_bytes((run_folder / "model.onnx").read_bytes())
    outcome = vitslim("inspect", tmp_path / "alone.onnx", "--layers")
    assert outcome.code == 5
    assert "no saved graph" in outcome.err


def test_a_file_that_onnx_runtime_cannot_load_is_still_shown(vitslim: Run, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "mine": 3]> m (float[N, C, H, W] x) => (float[A] y)
    { h = mine.Strange(x)  y = Relu(h) }"""
    model = onnx.parser.parse_model(text)
    model.metadata_props.add(key="note", value="[red]\x1b[31mbad[/red]")
    onnx.save(model, tmp_path / "any.onnx")
    outcome = vitslim("inspect", tmp_path / "any.onnx", "--verify")
    assert outcome.code == 0
    assert "mine.Strange 1, Relu 1" in outcome.out
    assert "the file makes no claims to check" in outcome.out
    assert "ONNX Runtime rejects" in " ".join(outcome.out.split())
    assert "\x1b" not in outcome.out
    assert "[red]" in outcome.out


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_damaged_files_are_refused(vitslim: Run, run_folder: Path, tmp_path: Path, command: str) -> None:
    whole = (run_folder / "model.onnx").read_bytes()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "words.onnx").write_text("not a model")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(3 * 2**30)
    model = onnx.load(run_folder / "model.onnx")
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="out.data", size_threshold=0)
    for name in ("above.onnx", "absent.onnx"):
        outside = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        for tensor in outside.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../out.data" if name == "above.onnx" else "none.data"
        (tmp_path / name).write_bytes(outside.SerializeToString())
    (tmp_path / "folder").mkdir()
    for name in ("empty", "words", "cut", "huge", "above", "absent", "missing"):
        outcome = vitslim(command, tmp_path / f"{name}.onnx")
        assert (outcome.code, outcome.out) == (5, ""), name
        assert outcome.err.startswith("error: ")
        assert "hint: " in outcome.err
    assert vitslim(command, tmp_path / "folder").code == 5


def test_a_backend_that_is_not_installed_has_an_install_hint(
    vitslim: Run, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    outcome = vitslim("bench", run_folder / "model.onnx", "--backend", "openvino:cpu")
    assert outcome.code == 4
    assert "pip install openvino" in outcome.err
