"""Read the weights of layers back from an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

INTEGER_MATMUL = "MatMulInteger"
LAYERS = ("MatMul", "Gemm", "Conv", INTEGER_MATMUL)


@dataclass(frozen=True)
class StoredWeight:
    """The constant operand of a matmul or convolution, in the layout of the graph: (output channels, reduction...)."""

    name: str
    values: NDArray[Any]
    """Integers if the weight is quantized; 8-bit floats as float32."""
    scales: NDArray[np.float32] | None
    """Per output channel, per group or per tensor; None for a float weight."""
    bits: int
    """Of the stored type."""


def stored_weight(node: ir.Node) -> StoredWeight | None:
    """Return the weight of a matmul or convolution; None for a matmul of two activations and for other nodes.

    Between the stored weight and the node there may be DequantizeLinear, or Cast and Mul with the scales; those of
    MatMulInteger come after it. INT4 weights with integer group scales are returned as their product, INT8.
    """
    operand = node.inputs[1] if node.op_type in LAYERS else None
    scales = _scales_after(node) if node.op_type == INTEGER_MATMUL else None
    shape: NDArray[Any] | None = None
    group_scales: NDArray[Any] | None = None
    while operand is not None and (producer := operand.producer()) is not None:
        if producer.op_type not in {"DequantizeLinear", "Cast", "Mul", "Reshape"}:
            return None
        if producer.op_type != "Cast":
            constant = _constant(producer.inputs[1])
            if constant is None:
                return None
            if producer.op_type == "Reshape":
                shape = constant
            elif constant.dtype.kind == "f":
                scales = constant
            else:
                group_scales = constant
        operand = producer.inputs[0]
    if operand is None or operand.const_value is None or operand.name is None:
        return None
    values = operand.const_value.numpy()
    if operand.const_value.dtype == ir.DataType.FLOAT8E4M3FN:
        values = values.astype(np.float32)
    if group_scales is not None and shape is not None:
        values = (values.astype(np.int8) * group_scales.astype(np.int8)).reshape(shape)
    elif group_scales is not None or shape is not None:
        return None
    by_output = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    return StoredWeight(
        operand.name, values if by_output else values.swapaxes(-1, -2), scales, _bits(operand.const_value.dtype)
    )


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array of a constant, which may be cast; None for a computed value."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _scales_after(matmul: ir.Node) -> NDArray[np.float32] | None:
    """The weight scales of a MatMulInteger: a Mul after the Cast of its sums applies them with the input scale."""
    cast = matmul.outputs[0].consumers()[0]
    factor = cast.outputs[0].consumers()[0].inputs[1]
    product = factor.producer() if factor is not None else None
    scale = product.inputs[1] if product is not None else None
    return None if scale is None or scale.const_value is None else scale.const_value.numpy()


def _bits(kind: ir.DataType) -> int:
    return int(kind.bitwidth)
