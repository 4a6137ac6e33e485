"""How far every class of operators of the INT8 DeiT-Tiny is from what this processor can do.

ONNX Runtime's own profile of one thread gives the least time of each operator. The floor of a product is its number of
multiplications at the best rate of square products of its kind, that of everything else its bytes at the rate of
adding two tensors that fit into the caches. Both are measured in the same run. Needs the files of `scripts/bench int8`.
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
from onnx import TensorProto, helper

from vitslim.backends.environment import environment

ROOT = Path(__file__).resolve().parents[2]
RESULT = "int8-floor"
FILES = {"FP32": "fp32.onnx", "vitslim auto": "vitslim auto.onnx", "vitslim portable": "vitslim portable.onnx"}
RUNS = 40
SQUARES = (192, 384, 768, 1536)
"""Rows, columns and reduction of the products of which one shows the best rate."""
ADDED = 2**18
"""Numbers of the sum that shows the rate of bytes: 3 MB in all."""
CLASSES = {
    "products of codes": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm", "MatMulInteger"),
    "products of floats": ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"),
    "convolution": ("Conv", "ReorderOutput", "ReorderInput"),
    "GELU": ("Gelu", "BiasGelu", "QuickGelu"),
    "softmax": ("Softmax",),
    "norms": ("LayerNormalization", "SkipLayerNormalization"),
    "additions, factors, largest values": ("Add", "Sub", "Mul", "Div", "Clip", "Max", "ReduceMax"),
    "moves": ("Transpose", "Reshape", "Split", "Concat", "Slice", "Gather", "Expand", "Shape", "Squeeze"),
    "quantizers": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
PRODUCTS = {"products of codes": "codes", "products of floats": "floats", "convolution": "floats"}
"""Class to the kind of product whose rate is its floor."""

Event = dict[str, Any]


def run() -> dict[str, float]:
    """Fill this processor's table in scripts/results: milliseconds and floor of each class at batch 1, by file."""
    folder = ROOT / "runs" / "int8-bench"
    missing = [name for name in FILES.values() if not (folder / name).exists()]
    if missing:
        sys.exit(f"no {missing[0]} in {folder}: run scripts/bench int8 first")
    rates = _rates()
    rows = {name: _classes(_profile(folder / file, _image), rates) for name, file in FILES.items()}
    document = {"environment": environment().model_dump(), "rates": rates, "runs": RUNS, "rows": rows}
    result_here(RESULT).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return {f"{file} {name} {key}": value for file, row in rows.items() for name, found in row.items()
            for key, value in found.items()}  # fmt: skip


def _classes(events: list[Event], rates: dict[str, float]) -> dict[str, dict[str, float]]:
    """Milliseconds, floor and number of the operators of each class."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "floor_ms": 0.0, "n": 0})
    owner = {kind: name for name, kinds in CLASSES.items() for kind in kinds}
    for event in events:
        name = owner.get(event["args"]["op_name"], "others")
        row = found[name]
        row["n"] += 1
        row["ms"] += event["dur"] / 1e3
        if name in PRODUCTS and event["args"]["op_name"] not in {"ReorderOutput", "ReorderInput"}:
            row["floor_ms"] += 1e3 * _macs(event) / rates[PRODUCTS[name]]
        else:
            row["floor_ms"] += 1e3 * _bytes(event) / rates["bytes"]
    return dict(found)


def _profile(model: Path | onnx.ModelProto, feed: Any) -> list[Event]:
    """The fastest run of each operator: events of ONNX Runtime with `dur` in microseconds."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        given = str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
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
    """Multiplications of a product, from the shapes of its operands and of its result."""
    inputs, outputs = _shapes(event, "input_type_shape"), _shapes(event, "output_type_shape")
    reduction = prod(inputs[1][1:]) if event["args"]["op_name"] == "Conv" else inputs[0][-1]
    return float(prod(outputs[0]) * reduction)


def _bytes(event: Event) -> float:
    """Bytes that an operator that changes every number reads and writes."""
    arguments = event["args"]
    return float(sum(int(arguments[key]) for key in ("activation_size", "output_size", "parameter_size")))


def _shapes(event: Event, key: str) -> list[list[int]]:
    return [next(iter(one.values())) for one in event["args"][key]]


def _rates() -> dict[str, float]:
    """Multiplications a second of square products of floats and of codes, and bytes a second of a sum."""
    return {
        "floats": max(n**3 / _seconds(_profile(*_square(n, TensorProto.FLOAT, "MatMul", []))) for n in SQUARES),
        "codes": max(
            n**3 / _seconds(_profile(*_square(n, TensorProto.UINT8, "MatMulInteger", ["z"]))) for n in SQUARES
        ),
        "bytes": 3 * 4 * ADDED / _seconds(_profile(*_sum())),
    }


def _seconds(events: list[Event]) -> float:
    return max(event["dur"] for event in events) / 1e6


def _square(n: int, kind: int, operator: str, zeros: list[str]) -> tuple[onnx.ModelProto, Any]:
    """A product of two square matrices, the second constant and of signed codes where the first has codes."""
    random = np.random.default_rng(0)
    integer = kind == TensorProto.UINT8
    weight = random.integers(-60, 60, (n, n)).astype(np.int8 if integer else np.float32)
    constants = [onnx.numpy_helper.from_array(weight, "w")]
    constants += [onnx.numpy_helper.from_array(np.array(3, np.uint8), name) for name in zeros]
    result = TensorProto.INT32 if integer else TensorProto.FLOAT
    x = random.integers(0, 255, (n, n)).astype(np.uint8 if integer else np.float32)
    return _model(operator, ["x", "w", *zeros], kind, x.shape, result, constants), lambda _: {"x": x}


def _sum() -> tuple[onnx.ModelProto, Any]:
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
