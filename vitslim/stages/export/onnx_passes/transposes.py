"""Store constants in the order in which matmuls read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from vitslim.stages.export.onnx_passes.rewrite import Array, constant_of, drop_unused, redirect, replace_constant


def fold_transposes(model: ir.Model) -> None:
    """In place: transpose constants instead of computing Transpose, also before a DequantizeLinear, whose axis moves
    along."""
    _merge_transposes(model)
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        order = [int(dim) for dim in node.attributes["perm"].as_ints()]
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if source is not None and source.is_initializer():
            new = replace_constant(model, source, _transposed(constant_of(source), order))
            redirect(model, node.outputs[0], new, [node])
            drop_unused(model, source)
        elif producer is not None and producer.op_type == "DequantizeLinear" and _only_user(producer) is node:
            _transpose_before_dequantize(model, producer, node, order)


def _merge_transposes(model: ir.Model) -> None:
    """Use one Transpose for all matmuls that share a weight: the weight can be folded only once."""
    first: dict[tuple[ir.Value | None, tuple[int, ...]], ir.Value] = {}
    for node in [one for one in model.graph if one.op_type == "Transpose"]:
        key = (node.inputs[0], tuple(node.attributes["perm"].as_ints()))
        if key in first:
            redirect(model, node.outputs[0], first[key], [node])
        first.setdefault(key, node.outputs[0])


def _transpose_before_dequantize(model: ir.Model, dequantize: ir.Node, transpose: ir.Node, order: list[int]) -> None:
    integers = dequantize.inputs[0]
    if integers is None or not integers.is_initializer():
        return
    if "axis" in dequantize.attributes:
        axis = order.index(dequantize.attributes.get_int("axis", 1))
        dequantize.attributes["axis"] = ir.AttrInt64("axis", axis)
    dequantize.replace_input_with(0, replace_constant(model, integers, _transposed(constant_of(integers), order)))
    for place, value in enumerate(dequantize.inputs[1:], 1):
        if value is not None and len(value.shape or ()) == len(order):
            new = replace_constant(model, value, _transposed(constant_of(value), order))
            dequantize.replace_input_with(place, new)
            drop_unused(model, value)
    output = dequantize.outputs[0]
    output.shape = transpose.outputs[0].shape
    redirect(model, transpose.outputs[0], output, [transpose])
    drop_unused(model, integers)


def _transposed(array: Array, order: list[int]) -> Array:
    result: Array = np.ascontiguousarray(array.transpose(order))
    return result


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None
