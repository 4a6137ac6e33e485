"""Matmuls of dynamically quantized activations in the form that ONNX Runtime computes in integers."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from vitslim.stages.export.onnx_passes.rewrite import insert, redirect

DYNAMIC = "DynamicQuantizeLinear"


class Quantized(NamedTuple):
    """The inputs of a DequantizeLinear."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def split_gemms(model: ir.Model) -> None:
    """In place: a Gemm with dynamic activations, or with group-wise weights, becomes a MatMul and an Add.

    Runs before transposed weights are folded. `use_integer_matmul` reads the first form, and ONNX Runtime fuses the
    second one to MatMulNBits.
    """
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) < len(("x", "weight", "bias")):
            continue
        x = find_quantized(node.inputs[0])
        if not _has_groups(node.inputs[1]) and (x is None or not _is_dynamic(x)):
            continue
        (_, weight, bias), output = node.inputs[:3], node.outputs[0]
        if node.attributes.get_int("transB", 0):
            weight = insert(model, node, "Transpose", [weight], None, None, perm=[1, 0])
        matmul = insert(model, node, "MatMul", [node.inputs[0], weight], output.dtype, output.shape)
        total = insert(model, node, "Add", [matmul, bias], output.dtype, output.shape)
        redirect(model, output, total, [node])


def use_integer_matmul(model: ir.Model) -> None:
    """In place: a MatMul of dynamic activations and integer weights becomes MatMulInteger, scaled afterwards.

    ONNX Runtime fuses DynamicQuantizeLinear, MatMulInteger, Cast, Mul and the Add of a bias to one kernel. After
    DequantizeLinear and MatMul the Add stays a second pass over the outputs.
    """
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, weight = (find_quantized(value) for value in node.inputs)
        if x is not None and weight is not None and _is_dynamic(x):
            _replace_matmul(model, node, x, weight)


def find_quantized(value: ir.Value | None) -> Quantized | None:
    """Return the integers, scale and zero point of a dequantized value; None if it is not one, or lacks any of them."""
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < len(Quantized._fields):
        return None
    inputs = [one for one in producer.inputs if one is not None]
    return Quantized(*inputs) if len(inputs) == len(Quantized._fields) else None


def _replace_matmul(model: ir.Model, node: ir.Node, x: Quantized, weight: Quantized) -> None:
    dequantized, output = [value.producer() for value in node.inputs if value is not None], node.outputs[0]
    floats, shape = ir.DataType.FLOAT, output.shape
    scales = insert(model, node, "Mul", [x.scale, weight.scale], floats, weight.scale.shape)
    operands = [x.integers, weight.integers, x.zero_point, weight.zero_point]
    sums = insert(model, node, "MatMulInteger", operands, ir.DataType.INT32, shape)
    cast = insert(model, node, "Cast", [sums], floats, shape, to=floats.value)
    redirect(model, output, insert(model, node, "Mul", [cast, scales], floats, shape), [node])
    model.graph.remove([one for one in dequantized if one is not None and not one.outputs[0].uses()], safe=True)


def _has_groups(weight: ir.Value | None) -> bool:
    producer = None if weight is None else weight.producer()
    dequantized = producer is not None and producer.op_type == "DequantizeLinear"
    return dequantized and producer.attributes.get_int("block_size", 0) > 0  # type: ignore[union-attr]


def _is_dynamic(x: Quantized) -> bool:
    producer = x.integers.producer()
    return producer is not None and producer.op_type == DYNAMIC
