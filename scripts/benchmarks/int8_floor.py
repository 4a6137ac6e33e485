"""Latency of each class of operators of the INT8 DeiT-Tiny, and its lower bound on this processor.

ONNX Runtime's profile of one thread gives the shortest time of each operator. The lower bound of a GEMM is its MACs at
the best rate of square GEMMs of its data type; that of any other operator is its bytes at the rate of adding two
tensors that fit into the caches. Both rates are measured in the same run. Needs the files of `scripts/bench int8`.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from by_processor import result_here
from int8 import FILES, FOLDER
from onnx import TensorProto, helper
from result_file import write_result

RESULT = "int8-floor"
RUNS = 40
SQUARES = (192, 384, 768, 1536)
"""Lengths of the square GEMMs that are timed; the best rate of them counts."""
ADDED = 2**18
"""Elements of the addition that gives the rate of bytes: 3 MB for both operands and the result."""
CLASSES = {
    "integer GEMMs": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "MatMulInteger"),
    "float GEMMs": ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"),
    "convolution": ("Conv", "ReorderOutput", "ReorderInput"),
    "GELU": ("Gelu", "BiasGelu", "QuickGelu"),
    "softmax": ("Softmax",),
    "normalization": ("LayerNormalization", "SkipLayerNormalization"),
    "elementwise and reductions": ("Add", "Sub", "Mul", "Div", "Clip", "Max", "ReduceMax"),
    "data movement": ("Transpose", "Reshape", "Split", "Concat", "Slice", "Gather", "Expand", "Shape", "Squeeze"),
    "quantize and dequantize": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
GEMMS = {"integer GEMMs": "integers", "float GEMMs": "floats", "convolution": "floats"}
"""Class to the rate that gives its lower bound."""

Event = dict[str, Any]


def run() -> dict[str, float]:
    """Write the result of this processor; return milliseconds and lower bound of each class at batch 1, by file."""
    missing = [name for name in FILES.values() if not (FOLDER / name).exists()]
    if missing:
        sys.exit(f"error: {FOLDER / missing[0]} does not exist\nhint: run scripts/bench int8 first")
    rates = _rates()
    rows = {name: _classes(_profile(FOLDER / file, _image), rates) for name, file in FILES.items()}
    write_result(result_here(RESULT), rates=rates, runs=RUNS, rows=rows)
    return {f"{file} {name} {key}": value for file, row in rows.items() for name, found in row.items()
            for key, value in found.items()}  # fmt: skip


def _classes(events: list[Event], rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return milliseconds, lower bound and number of the operators of each class."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "floor_ms": 0.0, "n": 0})
    owner = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
    for event in events:
        name = owner.get(event["args"]["op_name"], "others")
        row = found[name]
        row["n"] += 1
        row["ms"] += event["dur"] / 1e3
        if name in GEMMS and event["args"]["op_name"] not in {"ReorderOutput", "ReorderInput"}:
            row["floor_ms"] += 1e3 * _macs(event) / rates[GEMMS[name]]
        else:
            row["floor_ms"] += 1e3 * _bytes(event) / rates["bytes"]
    return dict(found)


def _profile(model: Path | onnx.ModelProto, feed: Any) -> list[Event]:
    """Return the fastest run of each operator: events of ONNX Runtime with `dur` in microseconds.

    feed: function of the session that returns its inputs.
    """
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        inputs = feed(session)
        for _ in range(RUNS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    best: dict[str, Event] = {}
    for event in events:
        timed = event["cat"] == "Node" and event["name"].endswith("_kernel_time")
        if timed and event["dur"] < best.get(event["name"], {"dur": float("inf")})["dur"]:
            best[event["name"]] = event
    return list(best.values())


def _image(session: Any) -> dict[str, Any]:
    one = session.get_inputs()[0]
    shape = [1, *one.shape[1:]]
    return {one.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def _macs(event: Event) -> float:
    """Return the MACs of a GEMM or convolution, from the shapes of its operands and its result."""
    inputs, outputs = _shapes(event, "input_type_shape"), _shapes(event, "output_type_shape")
    reduction = prod(inputs[1][1:]) if event["args"]["op_name"] == "Conv" else inputs[0][-1]
    return float(prod(outputs[0]) * reduction)


def _bytes(event: Event) -> float:
    """Return the bytes of all inputs and outputs of an operator."""
    arguments = event["args"]
    return float(sum(int(arguments[key]) for key in ("activation_size", "output_size", "parameter_size")))


def _shapes(event: Event, key: str) -> list[list[int]]:
    return [next(iter(one.values())) for one in event["args"][key]]


def _rates() -> dict[str, float]:
    """Return the MACs per second of float and integer GEMMs, and the bytes per second of an addition."""
    return {
        "floats": max(n**3 / _seconds(_profile(*_square(n, TensorProto.FLOAT, "MatMul", []))) for n in SQUARES),
        "integers": max(
            n**3 / _seconds(_profile(*_square(n, TensorProto.UINT8, "MatMulInteger", ["z"]))) for n in SQUARES
        ),
        "bytes": 3 * 4 * ADDED / _seconds(_profile(*_addition())),
    }


def _seconds(events: list[Event]) -> float:
    return max(event["dur"] for event in events) / 1e6


def _square(n: int, kind: int, operator: str, zero_points: list[str]) -> tuple[onnx.ModelProto, Any]:
    """Return a GEMM of two square matrices and its inputs; the second is constant, and INT8 if the first is UINT8."""
    random = np.random.default_rng(0)
    integer = kind == TensorProto.UINT8
    weight = random.integers(-60, 60, (n, n)).astype(np.int8 if integer else np.float32)
    constants = [onnx.numpy_helper.from_array(weight, "w")]
    constants += [onnx.numpy_helper.from_array(np.array(3, np.uint8), name) for name in zero_points]
    result = TensorProto.INT32 if integer else TensorProto.FLOAT
    x = random.integers(0, 255, (n, n)).astype(np.uint8 if integer else np.float32)
    return _model(operator, ["x", "w", *zero_points], kind, x.shape, result, constants), lambda _: {"x": x}


def _addition() -> tuple[onnx.ModelProto, Any]:
    x = np.ones(ADDED, np.float32)
    constant = [onnx.numpy_helper.from_array(x, "w")]
    return _model("Add", ["x", "w"], TensorProto.FLOAT, x.shape, TensorProto.FLOAT, constant), lambda _: {"x": x}


def _model(
    operator: str, inputs: list[str], kind: int, shape: tuple[int, ...], result: int, constants: list[TensorProto]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"])],
        operator,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", result, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
