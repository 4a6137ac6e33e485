"""Files that the quantizers of ONNX Runtime write: QOperator and dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline.bench.files import bench
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.file_form import FileForm
from vitslim.recipe.schema import ReportConfig
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload import read_workload
from vitslim.workload.session import OnnxModel

LAYERS = 10


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Random images for the ranges of activations."""

    def __init__(self, name: str) -> None:
        generator = np.random.default_rng(0)
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: generator.standard_normal((2, 3, 32, 32), dtype=np.float32)} for _ in range(2)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


@pytest.fixture(scope="module")
def dense(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block ViT at opset 17, without metadata."""
    path = tmp_path_factory.mktemp("dense") / "model.onnx"
    export_onnx(tiny_session_graph, path, form=FileForm(opset=17))
    model = onnx.load(path)
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def quantized(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, quantized: QOperator with unsigned and signed activations, and dynamic."""
    folder = tmp_path_factory.mktemp("quantized")
    name = FileForm().input_name
    paths = {key: folder / f"{key}.onnx" for key in ("unsigned", "signed", "dynamic")}
    for key, kind in (("unsigned", QuantType.QUInt8), ("signed", QuantType.QInt8)):
        quantize_static(
            dense, paths[key], Images(name), quant_format=QuantFormat.QOperator, per_channel=True,
            activation_type=kind,
        )  # fmt: skip
    quantize_dynamic(dense, paths["dynamic"], per_channel=True)
    return paths


@pytest.mark.parametrize("key", ["unsigned", "signed", "dynamic"])
def test_inspect_shows_eight_bits_for_weights_and_activations(quantized: dict[str, Path], key: str) -> None:
    found = inspect(quantized[key])
    layers = found.contents.layers
    assert len(layers) == LAYERS
    assert {(layer.weight_bits, layer.activation_bits, layer.quantized_by) for layer in layers} == {(8, 8, "integer")}
    assert {layer.container for layer in layers} == {"INT8"}
    assert "blocks.1.mlp.fc2" in {layer.name for layer in layers}
    assert {layer.granularity for layer in layers if "blocks" in layer.name} == {"channel"}
    assert found.kernels is not None and found.violations == ()


def test_bench_measures_and_simulates_them(dense: Path, quantized: dict[str, Path]) -> None:
    config = ReportConfig(backends=("onnxruntime:cpu", "sim:systolic"), seconds=0.05)
    rows = bench([dense, *quantized.values()], config).rows
    assert all(row.measurements[0].median_ms > 0 and row.estimates[0].latency_ms > 0 for row in rows)


@pytest.mark.parametrize("key", ["unsigned", "signed", "dynamic"])
def test_the_workload_has_the_matmuls_of_the_float_file(dense: Path, quantized: dict[str, Path], key: str) -> None:
    found = read_workload(quantized[key])
    assert found.macs == read_workload(dense).macs
    assert found.unknown == {}
    assert {operator.activation_bits for operator in found.operators if operator.weight} == {8}
    roles = [operator.role for operator in found.operators if operator.op == "attention"]
    assert roles == ["QK^T", "PV"] * 2


def test_measuring_needs_no_shapes(tmp_path: Path) -> None:
    """No shape of this file can be inferred, because ONNX does not know the operator."""
    path = tmp_path / "unknown.onnx"
    _write(path, "y = com.microsoft.FusedMatMul <alpha = 2.0> (x, w) z = Sigmoid(y)", "float[N, 3, 8, 4] x", "z")
    config = ReportConfig(backends=("onnxruntime:cpu",), batches=(1, 2), seconds=0.02)
    (row,) = bench([path], config).rows
    assert [one.batch for one in row.measurements] == [1, 2]


def test_half_precision_inputs_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    _write(path, "z = Mul(x, x)", "float16[N, 3, 8, 4] x", "z", "float16")
    found = OnnxModel(path)(np.full((2, 3, 8, 4), 3, np.float32))
    assert found.dtype == np.float32 and (found == 9).all()
    (row,) = bench([path], ReportConfig(seconds=0.02)).rows
    assert row.measurements[0].median_ms > 0


def _write(path: Path, body: str, source: str, output: str, kind: str = "float") -> None:
    header = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header} m ({source}) => ({kind} {output}) {{ {body} }}")
    model.graph.initializer.append(onnx.helper.make_tensor("w", TensorProto.FLOAT, [4, 4], _ones(16)))
    onnx.save(model, path)


def _ones(count: int) -> Sequence[float]:
    return [1.0] * count
