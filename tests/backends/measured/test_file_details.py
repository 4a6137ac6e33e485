"""Peak memory of a file, times of its operators, and the log of TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vitslim.backends.measured.operator_times import median_times, operator_times
from vitslim.backends.measured.tensorrt_log import read_tensorrt_log
from vitslim.backends.peak_memory import peak_memory_bytes
from vitslim.errors import InputError
from vitslim.pipeline.file_details import two_four_uses
from vitslim.recipe.schema import ReportConfig

SIDE = 4096
"""Rows and columns of a weight of 64 MiB."""


@pytest.fixture
def wide_model(tmp_path: Path) -> Path:
    """A matmul by a large weight."""
    path = tmp_path / "wide.onnx"
    header, shape = '<ir_version: 10, opset_import: ["": 21]>', f"float[n, {SIDE}]"
    model = onnx.parser.parse_model(f"{header} g ({shape} x) => ({shape} y) {{ y = MatMul(x, w) }}")
    weight = np.random.default_rng(0).standard_normal((SIDE, SIDE), dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    model.graph.node[0].name = "fc"
    onnx.save(model, path)
    return path


def test_peak_memory_contains_the_weights_and_not_this_process(wide_model: Path) -> None:
    ballast = np.ones(100_000_000)
    found = peak_memory_bytes("onnxruntime:cpu", wide_model, 1, 1)
    assert 4 * SIDE * SIDE < found < 5 * 4 * SIDE * SIDE < ballast.nbytes


def test_a_failure_in_the_measuring_process_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be measured: ONNX Runtime rejects"):
        peak_memory_bytes("onnxruntime:cpu", tmp_path / "junk.onnx", 1, 1)


def test_the_profiler_finds_the_matmul(wide_model: Path) -> None:
    (one,) = operator_times(wide_model, 2, 1, "CPUExecutionProvider")
    assert (one.name, one.op, one.provider) == ("fc", "MatMul", "CPUExecutionProvider")
    assert one.median_us > 0


def test_times_of_operators_are_medians_after_the_warm_up() -> None:
    events: list[dict[str, Any]] = []
    for run, (a, b) in enumerate([(900, 900), (5, 10), (7, 99), (6, 20)]):
        start = 1000 * run
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": 950, "args": {}})
        for name, us in (("a", a), ("b", b)):
            event = {"cat": "Node", "name": f"{name}_kernel_time", "ts": start + 1, "dur": us}
            events.append({**event, "args": {"op_name": name.upper(), "provider": "P"}})
    found = median_times(reversed(events), 1, "x.onnx")
    assert [(one.name, one.op, one.median_us) for one in found] == [("b", "B", 20.0), ("a", "A", 6.0)]
    with pytest.raises(InputError, match="no runs"):
        median_times(events, 4, "x.onnx")


@pytest.mark.parametrize(
    "lines",
    [
        ("Layers eligible for sparse math: /fc1 + /relu, /fc2, other",
         "TRT inference plan picked sparse implementation for layers: /fc1 + /relu"),
        ("Found 3 layer(s) eligible to use sparse tactics: /fc1 + /relu, /fc2, other",
         "Chose 1 layer(s) using sparse tactics: /fc1 + /relu"),
    ],
)  # fmt: skip
def test_the_log_of_tensorrt_gives_the_status_of_each_layer(tmp_path: Path, lines: tuple[str, str]) -> None:
    log = tmp_path / "build.log"
    log.write_text("".join(f"[08/05/2024-12:06:54] [I] [TRT] (Sparsity) {line}\n" for line in lines))
    nodes = {"/fc1": "blocks.0.mlp.fc1", "/fc2": "blocks.0.mlp.fc2", "/head": "head"}
    found = read_tensorrt_log(log, nodes)
    assert [layer.status for layer in found.layers] == ["selected", "eligible, not selected", "not eligible"]
    assert [layer.layer for layer in found.layers] == list(nodes.values())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe[I] [TRT] Engine built in 31 sec.\n"])
def test_a_log_without_sparsity_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "build.log").write_bytes(content)
    with pytest.raises(InputError, match="does not tell which layers are sparse") as caught:
        read_tensorrt_log(tmp_path / "build.log", {})
    assert "trtexec" in caught.value.hint


def test_every_backend_has_a_line_about_layers_with_2_4_weights(tmp_path: Path) -> None:
    dense = np.abs(np.random.default_rng(0).standard_normal((32, 16), dtype=np.float32)) + 1
    sparse = dense * np.tile([[0], [0], [1], [1]], (8, 1)).astype(np.float32)
    systolic = {"sim": "systolic", "dataflow": "os"}
    backends = ("onnxruntime:cpu", "sim:a100", "sim:systolic", systolic, "sim:fact", "sim:spatten")
    config = ReportConfig(backends=backends)
    found = {}
    for name, weight in (("dense", dense), ("sparse", sparse)):
        header = '<ir_version: 10, opset_import: ["": 21]>'
        model = onnx.parser.parse_model(f"{header} m (float[N, 32] x) => (float[N, 16] y) {{ y = MatMul(x, w) }}")
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(model, tmp_path / f"{name}.onnx")
        found[name] = two_four_uses(tmp_path / f"{name}.onnx", config)
    assert found["dense"] == ()
    assert [use.backend for use in found["sparse"]][1:3] == ["sim:a100", "sim:systolic"]
    words = ("does not tell", "sparse tensor cores", "skips the zeros", "dense ones", "dense ones", "dense ones")
    assert all(word in use.note for word, use in zip(words, found["sparse"], strict=True))
