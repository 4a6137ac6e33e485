"""Products of codes in the forms that ONNX Runtime computes in integers, with what stands around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from vitslim.stages.export.onnx_passes.rewrite import add_constant, insert, redirect

DYNAMIC = "DynamicQuantizeLinear"


class Quantized(NamedTuple):
    """The inputs of a DequantizeLinear."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def split_gemms(model: ir.Model) -> None:
    """In place: a Gemm of dynamically quantized inputs, or of a weight in blocks, becomes a MatMul and an addition.

    Before transposed weights are folded. The one is the form that `integer_products` knows, the other what ONNX Runtime
    makes MatMulNBits of.
    """
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) < len(("x", "weight", "bias")):
            continue
        x = _quantized(node.inputs[0])
        if not _in_blocks(node.inputs[1]) and (x is None or not _is_dynamic(x)):
            continue
        (_, weight, bias), output = node.inputs[:3], node.outputs[0]
        if node.attributes.get_int("transB", 0):
            weight = insert(model, node, "Transpose", [weight], None, None, perm=[1, 0])
        product = insert(model, node, "MatMul", [node.inputs[0], weight], output.dtype, output.shape)
        total = insert(model, node, "Add", [product, bias], output.dtype, output.shape)
        redirect(model, output, total, [node])


def integer_products(model: ir.Model) -> None:
    """In place: products of dynamically quantized inputs by stored codes become MatMulInteger, scaled behind it.

    ONNX Runtime makes one kernel of DynamicQuantizeLinear, MatMulInteger, Cast, Mul and the addition of a bias. Behind
    a DequantizeLinear and a MatMul the addition stays a pass of its own over the outputs.
    """
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, weight = (_quantized(value) for value in node.inputs)
        if x is not None and weight is not None and _is_dynamic(x):
            _multiply_codes(model, node, x, weight)


def relus_as_maxima(model: ir.Model) -> None:
    """In place: a Relu behind a product of codes becomes the larger of its input and zero, which is the same.

    ONNX Runtime computes a product in floats whose result goes through Relu and on.
    """
    for node in list(model.graph):
        product = None if node.op_type != "Relu" or node.inputs[0] is None else node.inputs[0].producer()
        if product is None or product.op_type not in {"MatMul", "Gemm"}:
            continue
        if all(_quantized(value) is not None for value in product.inputs[:2]):
            output = node.outputs[0]
            zero = add_constant(model, f"{output.name}.zero", np.zeros((), np.float32))
            redirect(
                model, output, insert(model, node, "Max", [node.inputs[0], zero], output.dtype, output.shape), [node]
            )


def _multiply_codes(model: ir.Model, node: ir.Node, x: Quantized, weight: Quantized) -> None:
    before, output = [value.producer() for value in node.inputs if value is not None], node.outputs[0]
    floats, shape = ir.DataType.FLOAT, output.shape
    scales = insert(model, node, "Mul", [x.scale, weight.scale], floats, weight.scale.shape)
    operands = [x.codes, weight.codes, x.zero_point, weight.zero_point]
    codes = insert(model, node, "MatMulInteger", operands, ir.DataType.INT32, shape)
    cast = insert(model, node, "Cast", [codes], floats, shape, to=floats.value)
    redirect(model, output, insert(model, node, "Mul", [cast, scales], floats, shape), [node])
    model.graph.remove([one for one in before if one is not None and not one.outputs[0].uses()], safe=True)


def _in_blocks(weight: ir.Value | None) -> bool:
    producer = None if weight is None else weight.producer()
    dequantized = producer is not None and producer.op_type == "DequantizeLinear"
    return dequantized and producer.attributes.get_int("block_size", 0) > 0  # type: ignore[union-attr]


def _is_dynamic(x: Quantized) -> bool:
    producer = x.codes.producer()
    return producer is not None and producer.op_type == DYNAMIC


def _quantized(value: ir.Value | None) -> Quantized | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < len(Quantized._fields):
        return None
    inputs = [one for one in producer.inputs if one is not None]
    return Quantized(*inputs) if len(inputs) == len(Quantized._fields) else None
