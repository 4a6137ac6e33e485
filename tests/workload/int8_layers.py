"""A small INT8 weight in ONNX, and the contents of files that hold it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vitslim.workload import load_onnx
from vitslim.workload.contents.file_contents import FileContents, Layer
from vitslim.workload.contents.read_contents import name_nodes, read_contents

QUANTIZED_INPUT = "q = QuantizeLinear(x, s, zero)  d = DequantizeLinear(q, s, zero)"
PER_CHANNEL = f"{QUANTIZED_INPUT}  f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"


def int8_weight(kept_per_four: int = 4, largest: int = 100) -> np.ndarray:
    """INT8 (8, 6), reduced along the first dimension, with `kept_per_four` nonzero values in every run of four."""
    generator = np.random.default_rng(0)
    values = generator.integers(1, largest, (8, 6))
    values[0, 0] = largest
    order = np.tile([0, 2, 1, 3], 2)[:, None]  # two kept values are never an adjacent pair
    return np.where(order < kept_per_four, values, 0).astype(np.int8)


def constants(**more: Any) -> dict[str, Any]:
    return {"s": np.float32(0.1), "zero": np.int8(0), "sw": np.full(6, 0.1, np.float32), **more}


def contents_of(path: Path) -> FileContents:
    model = load_onnx(path)
    name_nodes(model)
    return read_contents(model)


def only_layer(path: Path) -> Layer:
    (layer,) = contents_of(path).layers
    return layer
