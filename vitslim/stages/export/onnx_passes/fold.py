"""Folds what is known before the model runs: transposed weights are stored so, and codes in the type that fits them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from vitslim.errors import StageError
from vitslim.stages.export.graph_passes.lower import Form, Stored
from vitslim.stages.export.onnx_passes.rewrite import add_constant, insert, redirect
from vitslim.stages.quantize.ptq.integer_scales import part_codes
from vitslim.units import container_bits

Array = NDArray[Any]


def fold_transposes(model: ir.Model) -> None:
    """Store constants the way that Transpose nodes want them; behind DequantizeLinear the axis moves along."""
    _merge_transposes(model)
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        order = [int(dim) for dim in node.attributes["perm"].as_ints()]
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if source is not None and source.is_initializer():
            _replace(model, source, _transposed(_needed(source), order), node, [node])
        elif producer is not None and producer.op_type == "DequantizeLinear" and _only_user(producer) is node:
            _transpose_before_dequantize(model, producer, node, order)


def _merge_transposes(model: ir.Model) -> None:
    """One Transpose for all products that share a weight, which could not be folded for each of them."""
    first: dict[tuple[ir.Value | None, tuple[int, ...]], ir.Value] = {}
    for node in [one for one in model.graph if one.op_type == "Transpose"]:
        key = (node.inputs[0], tuple(node.attributes["perm"].as_ints()))
        if key in first:
            redirect(model, node.outputs[0], first[key], [node])
        first.setdefault(key, node.outputs[0])


def keep_constants(model: ir.Model) -> None:
    """Keep constants that onnxscript made and lost: it gives the limits of all clips of one value the same names."""
    lost = [
        value for node in model.graph for value in node.inputs
        if value is not None and value.const_value is not None and value.producer() is None and value.graph is None
    ]  # fmt: skip
    for value in dict.fromkeys(lost):
        model.graph.register_initializer(value)


def fold_gemm_biases(model: ir.Model) -> None:
    """Give each Gemm of quantized operands an INT32 bias: without one ONNX Runtime computes the whole Gemm in float.

    The bias has the step of the accumulator, input scale times weight scale, so half a step is all it moves.
    """
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        scales = [_dequantize_scale(value) for value in node.inputs[:2]]
        bias = _constant(node.inputs[2])
        if bias is None or scales[0] is None or scales[1] is None or bias.ndim != 1:
            continue
        step = np.broadcast_to(scales[0] * scales[1], bias.shape).astype(np.float32)
        codes = np.rint(bias.astype(np.float64) / step)
        if np.abs(codes).max() <= np.iinfo(np.int32).max:
            _dequantized_bias(model, node, codes.astype(np.int32), step)


def store_weights(model: ir.Model, stored: Mapping[str, Stored]) -> None:
    """Give codes the type and the form that `lower_quantizers` chose for each weight.

    After the optimizer, which would compute casts and products of small constants and store floats.
    """
    for node in list(model.graph):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or not codes.is_initializer() or str(codes.name) not in stored:
            continue
        bits, form, block = stored[str(codes.name)]
        if block:
            codes = _in_multiples(model, node, codes, bits, block)
        elif container_bits(bits) == 4:
            narrow = _add_initializer(model, codes, _needed(codes).astype(ml_dtypes.int4))
            node.replace_input_with(0, narrow)
            _drop_unused(model, codes)
            codes = narrow
            _narrow_zeros(model, node, form)
        if form is Form.WIDEN and not block:
            node.replace_input_with(
                0, insert(model, node, "Cast", [codes], ir.DataType.INT8, codes.shape, to=ir.DataType.INT8.value)
            )
        elif form is Form.MULTIPLY:
            _multiply(model, node, codes)


def _in_multiples(model: ir.Model, dequantize: ir.Node, codes: ir.Value, bits: int, block: int) -> ir.Value:
    """In place of codes of 8 bits, codes of 4 bits times the whole number of their block, which runtimes multiply when
    they load the file."""
    whole, last = _needed(codes), dequantize.attributes.get_int("axis", 1)
    try:
        parted = part_codes(torch.from_numpy(whole if last == 0 else whole.T), bits, block)
    except ValueError as error:
        raise StageError(f"'{codes.name}' was changed after it was quantized: {error}", "quantize last") from error
    narrow, by = (part.numpy() if last == 0 else part.numpy().transpose(1, 2, 0) for part in parted)
    stored = _add_initializer(model, codes, narrow.astype(ml_dtypes.int4))
    multiples = add_constant(model, f"{stored.name}_multiples", by.astype(ml_dtypes.uint4))
    shape = add_constant(model, f"{stored.name}_shape", np.array(whole.shape, np.int64))
    floats = ir.DataType.FLOAT
    factors = [
        insert(model, dequantize, "Cast", [one], floats, one.shape, to=floats.value) for one in (stored, multiples)
    ]
    product = insert(model, dequantize, "Mul", factors, floats, stored.shape)
    matrix = insert(model, dequantize, "Reshape", [product, shape], floats, codes.shape)
    wide = insert(model, dequantize, "Cast", [matrix], ir.DataType.INT8, codes.shape, to=ir.DataType.INT8.value)
    dequantize.replace_input_with(0, wide)
    _drop_unused(model, codes)
    return wide


def part_zero_points(model: ir.Model) -> None:
    """Give the codes of every weight zero points of their own, where one constant was shared.

    OpenVINO multiplies in floats where that of a convolution is also that of a product.
    """
    for node in [one for one in model.graph if one.op_type == "DequantizeLinear" and len(one.inputs) > 2]:
        codes, zeros = node.inputs[0], node.inputs[2]
        if codes is not None and codes.is_initializer() and zeros is not None and len(zeros.uses()) > 1:
            array = _constant(zeros)
            if array is not None and array.ndim:
                node.replace_input_with(2, add_constant(model, f"{codes.name}_zeros", array))


def _narrow_zeros(model: ir.Model, node: ir.Node, form: Form) -> None:
    """Zero points have the type of the codes: those of blocks become INT4, others are 0 and go."""
    zeros = node.inputs[2] if len(node.inputs) > 2 else None
    if zeros is not None and node.attributes.get_int("block_size", 0) > 0:
        node.replace_input_with(2, _add_initializer(model, zeros, _needed(zeros).astype(ml_dtypes.int4)))
        _drop_unused(model, zeros)
    elif form is Form.DEQUANTIZE:
        node.resize_inputs(2)
        _drop_unused(model, zeros)


def _multiply(model: ir.Model, dequantize: ir.Node, codes: ir.Value) -> None:
    """Cast and Mul in place of DequantizeLinear, which ONNX Runtime would carry out anew for every image."""
    scale, axis = dequantize.inputs[1], dequantize.attributes.get_int("axis", 1)
    if scale is None:
        raise ValueError("a folded node has no input")
    steps = _needed(scale)
    shape = [-1 if dim == axis else 1 for dim in range(len(codes.shape or ()))]
    spread = _add_initializer(model, scale, steps.reshape(shape) if steps.ndim else steps)
    cast = insert(model, dequantize, "Cast", [codes], ir.DataType.FLOAT, codes.shape, to=ir.DataType.FLOAT.value)
    product = insert(model, dequantize, "Mul", [cast, spread], ir.DataType.FLOAT, codes.shape)
    operands = dequantize.inputs[1:]
    redirect(model, dequantize.outputs[0], product, [dequantize])
    for value in operands:
        _drop_unused(model, value)


def _dequantize_scale(value: ir.Value | None) -> Array | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return _constant(producer.inputs[1])


def _dequantized_bias(model: ir.Model, gemm: ir.Node, codes: Array, step: Array) -> None:
    bias = gemm.inputs[2]
    if bias is None:
        raise ValueError("a folded node has no input")
    stored = _add_initializer(model, bias, codes)
    scale = add_constant(model, f"{stored.name}_scale", step)
    dequantized = insert(model, gemm, "DequantizeLinear", [stored, scale], ir.DataType.FLOAT, scale.shape, axis=0)
    gemm.replace_input_with(2, dequantized)
    _drop_unused(model, bias)


def _transpose_before_dequantize(model: ir.Model, dequantize: ir.Node, transpose: ir.Node, order: list[int]) -> None:
    codes = dequantize.inputs[0]
    if codes is None or not codes.is_initializer():
        return
    if "axis" in dequantize.attributes:
        axis = order.index(dequantize.attributes.get_int("axis", 1))
        dequantize.attributes["axis"] = ir.AttrInt64("axis", axis)
    turned = _add_initializer(model, codes, _transposed(_needed(codes), order))
    dequantize.replace_input_with(0, turned)
    for place, value in enumerate(dequantize.inputs[1:], 1):
        if value is not None and len(value.shape or ()) == len(order):
            dequantize.replace_input_with(place, _add_initializer(model, value, _transposed(_needed(value), order)))
            _drop_unused(model, value)
    output = dequantize.outputs[0]
    output.shape = transpose.outputs[0].shape
    redirect(model, transpose.outputs[0], output, [transpose])
    _drop_unused(model, codes)


def _replace(model: ir.Model, old: ir.Value | None, array: Array, last: ir.Node, removed: list[ir.Node]) -> None:
    """Put a new constant in the place of the output of `last`; the old constant goes when nothing else reads it."""
    if old is None:
        raise ValueError("a folded node has no input")
    new = _add_initializer(model, old, array)
    redirect(model, last.outputs[0], new, removed)
    _drop_unused(model, old)


def _add_initializer(model: ir.Model, old: ir.Value, array: Array) -> ir.Value:
    """A new initializer named after the old one, which is renamed until it goes."""
    name = str(old.name)
    initializers = model.graph.initializers
    if old.is_initializer():
        initializers.pop(name)
        old.name = f"{name}.before_folding"
        initializers.add(old)
    return add_constant(model, name, array)


def _drop_unused(model: ir.Model, value: ir.Value | None) -> None:
    if value is not None and value.is_initializer() and not value.uses():
        model.graph.initializers.pop(str(value.name))


def _transposed(array: Array, order: list[int]) -> Array:
    turned: Array = np.ascontiguousarray(array.transpose(order))
    return turned


def _only_user(node: ir.Node) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0].node if len(uses) == 1 else None


def _constant(value: ir.Value | None) -> Array | None:
    """The array behind an initializer or a Constant node; None when the value is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _needed(value: ir.Value | None) -> Array:
    array = _constant(value)
    if array is None:
        raise ValueError(f"'{'' if value is None else value.name}' is not a constant")
    return array
