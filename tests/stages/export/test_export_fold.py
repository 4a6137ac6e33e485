"""What is folded and rewritten before a file is written, on small graphs of ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import onnxscript
import pytest

from vitslim.backends.measured.kernels import read_kernels
from vitslim.stages.export.graph_passes.lower import Form, Stored
from vitslim.stages.export.onnx_passes.fold import fold_transposes, keep_constants, store_weights
from vitslim.stages.export.onnx_passes.integer_matmul import relus_as_maxima

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


def test_constants_that_the_optimizer_loses_are_kept() -> None:
    model = ir.from_onnx_text(TWO_CLIPS)
    images = {"x": np.linspace(-5, 5, 40).reshape(20, 2).astype(np.float32)}
    before = results(model, images)
    onnxscript.optimizer.optimize(model)
    keep_constants(model)
    assert [node.op_type for node in model.graph] == ["Clip", "Clip"]
    assert len(model.graph.initializers) == 4
    for ours, theirs in zip(results(model, images), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_product_before_a_relu_is_of_integers() -> None:
    model = ir.from_onnx_text(BEFORE_A_RELU)
    images = {"x": np.random.default_rng(0).uniform(-9, 9, size=(40, 2)).astype(np.float32)}
    before = results(model, images)
    relus_as_maxima(model)
    assert "MatMulIntegerToFloat" in read_kernels(ir.to_proto(model).SerializeToString(), "the model").counts
    np.testing.assert_allclose(results(model, images)[0], before[0], rtol=1e-5)


@pytest.mark.parametrize(("bits", "form"), [(8, Form.MULTIPLY), (4, Form.MULTIPLY), (4, Form.DEQUANTIZE)])
def test_constants_that_nothing_reads_any_more_go(bits: int, form: Form) -> None:
    model = ir.from_onnx_text(SHARED)
    images = {name: np.ones((4, 3), np.float32) for name in ("x", "y")}
    before = results(model, images)
    store_weights(model, {"w": Stored(bits, form)})
    read = {value.name for node in model.graph for value in node.inputs if value is not None}
    assert set(model.graph.initializers) <= read
    np.testing.assert_allclose(results(model, images)[0], before[0], rtol=1e-6)


def test_a_weight_that_two_products_share_is_turned_once() -> None:
    model = ir.from_onnx_text(SHARED)
    images = {name: np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) for name in ("x", "y")}
    before = results(model, images)
    fold_transposes(model)
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "MatMul", "MatMul"]
    assert model.graph.initializers["w"].shape == ir.Shape((3, 2))
    for expected, found in zip(before, results(model, images), strict=True):
        np.testing.assert_array_equal(found, expected)


def results(model: ir.Model, images: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, images)
