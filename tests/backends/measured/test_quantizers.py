"""The quantizers of a file, run separately, against the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vitslim.backends.measured.quantizers import Quantizer, find_quantizers
from vitslim.workload.contents.read_contents import name_nodes, read_contents

INTEGERS = np.random.default_rng(0).integers(-7, 8, (8, 6))
IMAGES = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
SCALES = np.linspace(0.1, 0.6, 6).astype(np.float32)
SCALE = np.float32(0.02)
FOUR_BITS = helper.make_tensor("w", TensorProto.INT4, [8, 6], INTEGERS.reshape(-1).tolist())


def quantizer(text: str, **constants: Any) -> Quantizer:
    header = '<ir_version: 10, opset_import: ["": 21]>'
    model = onnx.parser.parse_model(f"{header} m (float[N, 8] x) => (float[N, 6] y) {{ {text} }}")
    for name, value in constants.items():
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value)
        tensor.name = name
        model.graph.initializer.append(tensor)
    name_nodes(model)
    (found,) = find_quantizers(model, read_contents(model).layers).values()
    return found


def test_static_with_a_zero_point() -> None:
    text = """q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
    f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)"""
    found = quantizer(text, s=SCALE, z=np.int8(3), sw=SCALES, w=INTEGERS.astype(np.int8))
    expected = (np.clip(np.rint(IMAGES / SCALE) + 3, -128, 127) - 3) * SCALE
    np.testing.assert_array_equal(found.input(IMAGES), expected.astype(np.float32))
    np.testing.assert_array_equal(found.weight(), (INTEGERS * SCALES).T.astype(np.float32))


def test_a_clip_belongs_to_the_quantizer_and_operators_before_it_do_not() -> None:
    text = """h = Relu(x)  k = Clip(h, low, high)  q = QuantizeLinear(k, s)  d = DequantizeLinear(q, s)
    c = Cast<to = 3>(w)  f = DequantizeLinear<axis = 1>(c, sw)  y = MatMul(d, f)"""
    found = quantizer(text, s=SCALE, sw=SCALES, w=FOUR_BITS, low=np.float32(-0.1), high=np.float32(0.2))
    ones = np.ones((1, 8), np.float32)
    np.testing.assert_array_equal(found.input(-ones), 0 * ones)  # without a zero point the integers are UINT8
    np.testing.assert_allclose(found.input(ones), 0.2 * ones, rtol=1e-6)
    np.testing.assert_array_equal(found.weight(), (INTEGERS * SCALES).T.astype(np.float32))


def test_dynamic() -> None:
    text = "q, a, b = DynamicQuantizeLinear(x)  i = MatMulInteger(q, w, b)  y = Cast<to = 1>(i)"
    found = quantizer(text, w=INTEGERS.astype(np.int8))
    result = found.input(IMAGES)
    assert result is not None
    assert np.abs(result - IMAGES).max() <= (IMAGES.max() - IMAGES.min()) / 255
    assert found.weight() is None


def test_group_wise_weights_with_a_float_input() -> None:
    scales = np.stack([SCALES, 2 * SCALES])
    found = quantizer("f = DequantizeLinear<axis = 0, block_size = 4>(w, sb)  y = MatMul(x, f)", w=FOUR_BITS, sb=scales)
    assert found.input(IMAGES) is None
    expected = (INTEGERS * np.repeat(scales, 4, axis=0)).T
    np.testing.assert_array_equal(found.weight(), expected.astype(np.float32))
