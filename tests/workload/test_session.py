"""Sessions of ONNX Runtime: logits against the reference, and invalid files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vitslim.errors import InputError
from vitslim.workload.session import OnnxModel, open_session

HEADER = '<ir_version: 10, opset_import: ["": 21]>'


@pytest.fixture
def linear_model(tmp_path: Path) -> Path:
    """One matmul on images of 3 x 8 x 8 with a dynamic batch."""
    text = "(float[N, 3, 8, 8] x) => (float[N, 5] y) { h = Reshape(x, shape)  m = MatMul(h, w)  y = Relu(m) }"
    model = onnx.parser.parse_model(f"{HEADER} m {text}")
    weight = np.random.default_rng(1).standard_normal((192, 5), np.float32)
    for name, value in (("shape", np.array([0, -1])), ("w", weight)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, tmp_path / "linear.onnx")
    return tmp_path / "linear.onnx"


@pytest.mark.parametrize("fuse", [True, False])
def test_logits_match_the_reference(linear_model: Path, fuse: bool) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
    expected = ReferenceEvaluator(str(linear_model)).run(None, {"x": images})[0]
    np.testing.assert_allclose(OnnxModel(linear_model, fuse=fuse)(images), expected, atol=1e-4)


def test_the_optimized_graph_is_written(linear_model: Path, tmp_path: Path) -> None:
    open_session(linear_model.read_bytes(), "the model", threads=1, optimized=tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert {"MatMul", "Relu"} <= {node.op_type for node in nodes}


def test_an_unknown_operator_is_rejected(tmp_path: Path, linear_model: Path) -> None:
    model = onnx.load(linear_model)
    model.graph.node[-1].op_type = "Strange"
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(InputError, match=r"ONNX Runtime rejects '.*strange.onnx'.*Strange"):
        OnnxModel(tmp_path / "strange.onnx")


def test_inputs_that_are_not_images(tmp_path: Path, linear_model: Path) -> None:
    def changed(name: str, element: int, shape: list[int | str]) -> Path:
        model = onnx.load(linear_model)
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", element, shape))
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    fixed = changed("fixed.onnx", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    assert OnnxModel(fixed).input_shape(2) == (2, 3, 8, 8)
    with pytest.raises(InputError, match="fixed batch size of 2, not 1"):
        OnnxModel(fixed).input_shape(1)
    with pytest.raises(InputError, match="dynamic image size"):
        OnnxModel(changed("dynamic.onnx", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])).input_shape(1)


def test_integer_inputs_are_rejected(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> m (int64[N] x) => (int64[N] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "ids.onnx")
    with pytest.raises(InputError, match="one float input"):
        OnnxModel(tmp_path / "ids.onnx")


def test_float_inputs_with_fp16_weights_run(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> m (float[N, 4] x) => (float[N, 2] y)
    { f = Cast<to = 1>(w)  y = MatMul(x, f) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float16), "w"))
    onnx.save(model, tmp_path / "half.onnx")
    assert OnnxModel(tmp_path / "half.onnx")(np.ones((3, 4), np.float32)).tolist() == [[4.0, 4.0]] * 3
