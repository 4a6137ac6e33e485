"""Products of codes in the forms that ONNX Runtime computes in integers, with what stands around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

DYNAMIC = "DynamicQuantizeLinear"


class Quantised(NamedTuple):
    """The inputs of a DequantizeLinear."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value


def split_gemms(model: ir.Model) -> None:
    """In place: each Gemm of dynamically quantised inputs becomes a MatMul and the addition of its bias.

    Before transposed weights are folded; the form that `integer_products` knows.
    """
    for node in list(model.graph):
        x = _quantised(node.inputs[0]) if node.op_type == "Gemm" else None
        if x is None or not _is_dynamic(x) or len(node.inputs) < len(("x", "weight", "bias")):
            continue
        weight, output = node.inputs[1], node.outputs[0]
        new = [ir.node("Transpose", [weight], {"perm": [1, 0]})] if node.attributes.get_int("transB", 0) else []
        product = ir.node("MatMul", [node.inputs[0], new[0].outputs[0] if new else weight])
        total = ir.node("Add", [product.outputs[0], node.inputs[2]])
        for one in (product, total):
            one.outputs[0].type, one.outputs[0].shape = output.type, output.shape
        model.graph.insert_before(node, [*new, product, total])
        ir.convenience.replace_all_uses_with(output, total.outputs[0], replace_graph_outputs=True)
        model.graph.remove([node], safe=True)


def integer_products(model: ir.Model) -> None:
    """In place: products of dynamically quantised inputs by stored codes become MatMulInteger, scaled behind it.

    ONNX Runtime makes one kernel of DynamicQuantizeLinear, MatMulInteger, Cast, Mul and the addition of a bias. Behind
    a DequantizeLinear and a MatMul the addition stays a pass of its own over the outputs.
    """
    for node in list(model.graph):
        if node.op_type != "MatMul":
            continue
        x, weight = (_quantised(value) for value in node.inputs)
        if x is not None and weight is not None and _is_dynamic(x):
            _multiply_codes(model, node, x, weight)


def relus_as_maxima(model: ir.Model) -> None:
    """In place: a Relu behind a product of codes becomes the larger of its input and zero, which is the same.

    ONNX Runtime computes a product in floats whose result goes through Relu and on to anything but a quantiser.
    """
    for node in list(model.graph):
        product = None if node.op_type != "Relu" or node.inputs[0] is None else node.inputs[0].producer()
        if product is None or product.op_type not in {"MatMul", "Gemm"}:
            continue
        if all(_quantised(value) is not None for value in product.inputs[:2]):
            _maximum(model, node)


def _maximum(model: ir.Model, relu: ir.Node) -> None:
    output, name = relu.outputs[0], f"{relu.outputs[0].name}.zero"
    zero = ir.Value(name=name, const_value=ir.tensor(np.zeros((), np.float32), name=name))
    zero.type, zero.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
    model.graph.initializers.add(zero)
    new = ir.node("Max", [relu.inputs[0], zero])
    new.outputs[0].type, new.outputs[0].shape = output.type, output.shape
    model.graph.insert_before(relu, new)
    ir.convenience.replace_all_uses_with(output, new.outputs[0], replace_graph_outputs=True)
    model.graph.remove([relu], safe=True)


def _multiply_codes(model: ir.Model, node: ir.Node, x: Quantised, weight: Quantised) -> None:
    before, output = [value.producer() for value in node.inputs if value is not None], node.outputs[0]
    scales = ir.node("Mul", [x.scale, weight.scale])
    codes = ir.node("MatMulInteger", [x.codes, weight.codes, x.zero_point, weight.zero_point])
    floats = ir.node("Cast", [codes.outputs[0]], {"to": ir.DataType.FLOAT.value})
    scaled = ir.node("Mul", [floats.outputs[0], scales.outputs[0]])
    for new, kind, shape in (
        (scales, ir.DataType.FLOAT, weight.scale.shape), (codes, ir.DataType.INT32, output.shape),
        (floats, ir.DataType.FLOAT, output.shape), (scaled, ir.DataType.FLOAT, output.shape),
    ):  # fmt: skip
        new.outputs[0].type, new.outputs[0].shape = ir.TensorType(kind), shape
        model.graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(output, scaled.outputs[0], replace_graph_outputs=True)
    model.graph.remove([node], safe=True)
    model.graph.remove([one for one in before if one is not None and not one.outputs[0].uses()], safe=True)


def _is_dynamic(x: Quantised) -> bool:
    producer = x.codes.producer()
    return producer is not None and producer.op_type == DYNAMIC


def _quantised(value: ir.Value | None) -> Quantised | None:
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear" or len(producer.inputs) < len(Quantised._fields):
        return None
    inputs = [one for one in producer.inputs if one is not None]
    return Quantised(*inputs) if len(inputs) == len(Quantised._fields) else None
