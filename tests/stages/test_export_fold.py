"""What is folded before a file is written, on small graphs of ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from vitslim.stages.export.fold import fold_transposes

MODEL = """
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


def test_a_weight_that_two_products_share_is_turned_once() -> None:
    model = ir.from_onnx_text(MODEL)
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
