"""Small ONNX files that take a measurable time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def write_model(path: Path, layers: int) -> Path:
    """Write `layers` matmuls of 256 x 256 on images of 3 x 8 x 8, with a dynamic batch."""
    generator = np.random.default_rng(0)
    constants = {"shape": np.array([0, -1]), "w0": generator.standard_normal((192, 256), np.float32)}
    text = "h0 = Reshape(x, shape)  h1 = MatMul(h0, w0)"
    for index in range(1, layers):
        constants[f"w{index}"] = generator.standard_normal((256, 256), np.float32) / 16
        text += f"  a{index} = Relu(h{index})  h{index + 1} = MatMul(a{index}, w{index})"
    header = '<ir_version: 10, opset_import: ["": 21]>'
    model = onnx.parser.parse_model(
        f"{header} m (float[N, 3, 8, 8] x) => (float[N, 256] y) {{ {text}  y = Relu(h{layers}) }}"
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.save(model, path)
    return path


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "small.onnx", 2)


@pytest.fixture
def large_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "large.onnx", 40)
