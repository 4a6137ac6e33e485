"""Relu after quantized matmuls."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitslim.stages.export.onnx_passes.integer_matmul import find_quantized
from vitslim.stages.export.onnx_passes.rewrite import add_constant, insert, redirect


def replace_relu_with_max(model: ir.Model) -> None:
    """In place: a Relu after a quantized matmul becomes the maximum of its input and zero.

    ONNX Runtime fuses Relu with a quantizer after it, and then computes the matmul before it in float.
    """
    for node in list(model.graph):
        matmul = None if node.op_type != "Relu" or node.inputs[0] is None else node.inputs[0].producer()
        if matmul is None or matmul.op_type not in {"MatMul", "Gemm"}:
            continue
        if all(find_quantized(value) is not None for value in matmul.inputs[:2]):
            output = node.outputs[0]
            zero = add_constant(model, f"{output.name}.zero", np.zeros((), np.float32))
            maximum = insert(model, node, "Max", [node.inputs[0], zero], output.dtype, output.shape)
            redirect(model, output, maximum, [node])
