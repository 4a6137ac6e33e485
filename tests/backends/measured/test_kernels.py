"""Kernels that ONNX Runtime chooses for matmuls between Q/DQ, layer by layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vitslim.backends.measured.kernels import INTEGER_KERNELS, read_kernels

INPUT = "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)"
FORMS = {
    "INT8 between Q/DQ": (f"{INPUT}  f = DequantizeLinear<axis = 1>(w, sw)  y = MatMul(d, f)", "MatMulIntegerToFloat"),
    "INT4 between Q/DQ": (f"{INPUT}  f = DequantizeLinear<axis = 1>(w4, sw)  y = MatMul(d, f)", "MatMul"),
    "INT4 after a cast": (
        f"{INPUT}  c = Cast<to = 3>(w4)  f = DequantizeLinear<axis = 1>(c, sw)  y = MatMul(d, f)",
        "MatMulIntegerToFloat",
    ),
    "INT4 per group": ("f = DequantizeLinear<axis = 0, block_size = 32>(w4, sb)  y = MatMul(x, f)", "MatMulNBits"),
    "float": ("y = MatMul(x, wf)", "MatMul"),
}


def serialized(text: str) -> bytes:
    integers = np.random.default_rng(0).integers(-7, 8, (64, 96))
    header = '<ir_version: 10, opset_import: ["": 21]>'
    model = onnx.parser.parse_model(f"{header} m (float[N, 17, 64] x) => (float[N, 17, 96] y) {{ {text} }}")
    constants = {
        "s": np.float32(0.1), "z": np.int8(0), "sw": np.full(96, 0.01, np.float32), "w": integers.astype(np.int8),
        "sb": np.full((2, 96), 0.01, np.float32), "wf": integers.astype(np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.initializer.append(helper.make_tensor("w4", TensorProto.INT4, [64, 96], integers.reshape(-1).tolist()))
    for index, node in enumerate(model.graph.node):
        node.name = "matmul" if node.op_type == "MatMul" else f"node {index}"
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("form", FORMS)
def test_a_fused_kernel_keeps_the_name_of_its_matmul(form: str) -> None:
    text, expected = FORMS[form]
    kernels = read_kernels(serialized(text), form)
    assert kernels.by_node["matmul"] == expected
    assert kernels.counts[expected] == 1
    assert (expected in INTEGER_KERNELS) == (expected != "MatMul")
