"""Store the biases of quantized Gemm nodes as integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitslim.stages.export.onnx_passes.rewrite import (
    Array,
    add_constant,
    drop_unused,
    find_constant,
    insert,
    replace_constant,
)


def quantize_gemm_biases(model: ir.Model) -> None:
    """In place: give each Gemm of quantized operands an INT32 bias; with a float one ONNX Runtime computes the Gemm in
    float.

    The scale of the bias is that of the accumulator, input scale times weight scale, so the bias changes by half an
    accumulator unit at most.
    """
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        scales = [_dequantize_scale(value) for value in node.inputs[:2]]
        bias = find_constant(node.inputs[2])
        if bias is None or scales[0] is None or scales[1] is None or bias.ndim != 1:
            continue
        scale = np.broadcast_to(scales[0] * scales[1], bias.shape).astype(np.float32)
        integers = np.rint(bias.astype(np.float64) / scale)
        if np.abs(integers).max() <= np.iinfo(np.int32).max:
            _store_bias(model, node, node.inputs[2], (integers.astype(np.int32), scale))


def _dequantize_scale(value: ir.Value | None) -> Array | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return find_constant(producer.inputs[1])


def _store_bias(model: ir.Model, gemm: ir.Node, bias: ir.Value, quantized: tuple[Array, Array]) -> None:
    integers, scales = quantized
    stored = replace_constant(model, bias, integers)
    scale = add_constant(model, f"{stored.name}_scale", scales)
    dequantized = insert(model, gemm, "DequantizeLinear", [stored, scale], ir.DataType.FLOAT, scale.shape, axis=0)
    gemm.replace_input_with(2, dequantized)
    drop_unused(model, bias)
