"""ONNX passes on small models: outputs do not change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from vitslim.backends.measured.kernels import read_kernels
from vitslim.stages.export.graph_passes.integer_weights import WeightForm, WeightStorage
from vitslim.stages.export.onnx_passes import ONNX_PASSES
from vitslim.stages.export.onnx_passes.gemm_biases import quantize_gemm_biases
from vitslim.stages.export.onnx_passes.integer_matmul import split_gemms, use_integer_matmul
from vitslim.stages.export.onnx_passes.optimize import restore_constants
from vitslim.stages.export.onnx_passes.relu import replace_relu_with_max
from vitslim.stages.export.onnx_passes.transposes import fold_transposes
from vitslim.stages.export.onnx_passes.weight_storage import plan_storage, store_weights
from vitslim.stages.export.onnx_passes.zero_points import split_shared_zero_points

SHARED = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 3] x, float[n, 3] y) => (float[n, 2] left, float[n, 2] right)
<int8[2, 3] w = {1, 2, 3, 4, 5, -6}, float[2] scale = {0.5, 2.0}, int8[2] zero = {0, 0}> {
  d = DequantizeLinear <axis = 0> (w, scale, zero)
  t = Transpose <perm = [1, 0]> (d)
  u = Transpose <perm = [1, 0]> (d)
  left = MatMul (x, t)
  right = MatMul (y, u)
}
"""

BEFORE_A_RELU = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 2] x) => (float[n, 2] y)
<float step = {0.1}, int8 none = {0}, int8[2, 2] w = {1, -2, 3, 4}, float[2] scale = {0.5, 2.0}, int8[2] zero = {0, 0},
 float two = {2.0}> {
  q = QuantizeLinear (x, step, none)
  d = DequantizeLinear (q, step, none)
  e = DequantizeLinear <axis = 1> (w, scale, zero)
  p = MatMul (d, e)
  r = Relu (p)
  y = Pow (r, two)
}
"""

GEMM = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 2] x) => (float[n, 2] y)
<float step = {0.1}, uint8 middle = {128}, int8[2, 2] w = {1, -2, 3, 4}, float[2] scale = {0.5, 2.0},
 int8[2] zero = {0, 0}, float[2] b = {0.3, -7.0}> {
  q = QuantizeLinear (x, step, middle)
  d = DequantizeLinear (q, step, middle)
  e = DequantizeLinear <axis = 1> (w, scale, zero)
  y = Gemm (d, e, b)
}
"""

DYNAMIC_GEMM = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 2] x) => (float[n, 2] y)
<int8[2, 2] w = {1, -2, 3, 4}, float[2] scale = {0.5, 2.0}, int8[2] zero = {0, 0}, float[2] b = {0.3, -7.0}> {
  q, step, point = DynamicQuantizeLinear (x)
  d = DequantizeLinear (q, step, point)
  e = DequantizeLinear <axis = 0> (w, scale, zero)
  y = Gemm <transB = 1> (d, e, b)
}
"""

SHARED_ZERO_POINTS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 2] x) => (float[n, 2] y)
<int8[2, 2] v = {1, 2, 3, 4}, int8[2, 2] w = {1, -2, 3, 4}, float[2] scale = {0.5, 2.0}, int8[2] zero = {0, 0}> {
  d = DequantizeLinear <axis = 1> (v, scale, zero)
  e = DequantizeLinear <axis = 1> (w, scale, zero)
  h = MatMul (x, d)
  y = MatMul (h, e)
}
"""

TWO_CLIPS = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 2] x) => (float[n, 2] near, float[n, 2] far)
<float a = {-1.0}, float b = {1.0}, float c = {-3.0}, float d = {3.0}> {
  p = Max (x, a)
  near = Min (p, b)
  q = Max (x, c)
  far = Min (q, d)
}
"""


def test_constants_that_the_optimizer_drops_are_restored() -> None:
    model = ir.from_onnx_text(TWO_CLIPS)
    images = {"x": np.linspace(-5, 5, 40).reshape(20, 2).astype(np.float32)}
    before = results(model, images)
    onnxscript.optimizer.optimize(model)
    restore_constants(model)
    assert [node.op_type for node in model.graph] == ["Clip", "Clip"]
    assert len(model.graph.initializers) == 4
    for ours, theirs in zip(results(model, images), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_matmul_before_a_relu_stays_an_integer_one() -> None:
    model = ir.from_onnx_text(BEFORE_A_RELU)
    images = {"x": np.random.default_rng(0).uniform(-9, 9, size=(40, 2)).astype(np.float32)}
    before = results(model, images)
    replace_relu_with_max(model)
    assert "MatMulIntegerToFloat" in read_kernels(ir.to_proto(model).SerializeToString(), "the model").counts
    np.testing.assert_allclose(results(model, images)[0], before[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("bits", "form"), [(8, WeightForm.MULTIPLY), (4, WeightForm.MULTIPLY), (4, WeightForm.DEQUANTIZE)]
)
def test_unused_constants_are_removed(bits: int, form: WeightForm) -> None:
    model = ir.from_onnx_text(SHARED)
    images = {name: np.ones((4, 3), np.float32) for name in ("x", "y")}
    before = results(model, images)
    plan_storage(model, {"w": WeightStorage(bits, form)})
    store_weights(model)
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert set(model.graph.initializers) <= read
    np.testing.assert_allclose(results(model, images)[0], before[0], rtol=1e-6)


def test_a_weight_that_two_matmuls_share_is_transposed_once() -> None:
    model = ir.from_onnx_text(SHARED)
    images = {name: np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) for name in ("x", "y")}
    before = results(model, images)
    fold_transposes(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "MatMul"]
    assert model.graph.initializers["w"].shape == ir.Shape((3, 2))
    for expected, found in zip(before, results(model, images), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_quantized_gemm_gets_an_int32_bias_and_runs_on_integers() -> None:
    model = ir.from_onnx_text(GEMM)
    images = {"x": np.random.default_rng(0).uniform(-9, 9, size=(40, 2)).astype(np.float32)}
    before = results(model, images)
    quantize_gemm_biases(model)
    assert model.graph.initializers["b"].dtype == ir.DataType.INT32
    assert read_kernels(ir.to_proto(model).SerializeToString(), "the model").counts["QGemm"] == 1
    half_a_step = 0.1 * np.array([0.5, 2.0]) / 2
    assert (np.abs(results(model, images)[0] - before[0]) <= half_a_step + 1e-4).all()


def test_a_gemm_of_dynamic_activations_becomes_an_integer_matmul() -> None:
    model = ir.from_onnx_text(DYNAMIC_GEMM)
    images = {"x": np.random.default_rng(0).uniform(-9, 9, size=(40, 2)).astype(np.float32)}
    before = results(model, images)
    split_gemms(model)
    assert [node.op_type for node in model.graph][-3:] == ["Transpose", "MatMul", "Add"]
    fold_transposes(model)
    use_integer_matmul(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["DynamicQuantizeLinear", "Mul", "MatMulInteger", "Cast", "Mul", "Add"]
    np.testing.assert_allclose(results(model, images)[0], before[0], rtol=1e-4, atol=1e-4)


def test_weights_that_share_zero_points_get_their_own() -> None:
    model = ir.from_onnx_text(SHARED_ZERO_POINTS)
    images = {"x": np.ones((4, 2), np.float32)}
    before = results(model, images)
    split_shared_zero_points(model)
    points = [node.inputs[2] for node in model.graph if node.op_type == "DequantizeLinear"]
    assert len(set(points)) == 2
    np.testing.assert_array_equal(results(model, images)[0], before[0])


def test_every_pass_has_a_name_and_a_purpose_of_its_own() -> None:
    assert len({one.name for one in ONNX_PASSES}) == len({one.purpose for one in ONNX_PASSES}) == len(ONNX_PASSES)


def results(model: ir.Model, images: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, images)
