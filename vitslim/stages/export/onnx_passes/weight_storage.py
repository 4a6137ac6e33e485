"""Store integer weights in the type and the form that `weight_storage` chose for each of them."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from vitslim.errors import StageError
from vitslim.graph.ops.group_scales import factor_group_scales
from vitslim.stages.export.graph_passes.integer_weights import WeightForm, WeightStorage
from vitslim.stages.export.onnx_passes.rewrite import (
    add_constant,
    constant_of,
    drop_unused,
    insert,
    redirect,
    replace_constant,
)
from vitslim.units import container_bits

STORAGE = "weight_storage"
"""Key in the metadata store of an `ir.Model`, which no file contains."""


def plan_storage(model: ir.Model, storage: Mapping[str, WeightStorage]) -> None:
    """Record on a model the storage of each quantized weight, by name, for `store_weights`."""
    model.meta[STORAGE] = storage


def store_weights(model: ir.Model) -> None:
    """In place: give integer weights the type and the form that `plan_storage` recorded.

    Runs after constant folding, which would compute casts and products of small constants and store floats.
    """
    storage: Mapping[str, WeightStorage] = model.meta.get(STORAGE, {})
    for node in list(model.graph):
        integers = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if integers is None or not integers.is_initializer() or str(integers.name) not in storage:
            continue
        bits, form, group_size = storage[str(integers.name)]
        if group_size:
            integers = _store_with_group_scales(model, node, integers, bits, group_size)
        elif container_bits(bits) == 4:
            narrow = replace_constant(model, integers, constant_of(integers).astype(ml_dtypes.int4))
            node.replace_input_with(0, narrow)
            drop_unused(model, integers)
            integers = narrow
            _narrow_zero_points(model, node, form)
        if form is WeightForm.WIDEN and not group_size:
            node.replace_input_with(0, _cast(model, node, integers, ir.DataType.INT8))
        elif form is WeightForm.MULTIPLY:
            _multiply_by_scales(model, node, integers)


def _cast(model: ir.Model, before: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
    return insert(model, before, "Cast", [value], kind, value.shape, to=kind.value)


def _store_with_group_scales(
    model: ir.Model, dequantize: ir.Node, integers: ir.Value, bits: int, group_size: int
) -> ir.Value:
    """Replace INT8 weights by INT4 weights and UINT4 group scales, which runtimes multiply when they load the file."""
    values, last = constant_of(integers), dequantize.attributes.get_int("axis", 1)
    by_output = torch.from_numpy(values if last == 0 else values.T)
    try:
        factors = factor_group_scales(by_output, bits, group_size)
    except ValueError as error:
        raise StageError(f"'{integers.name}' was changed after it was quantized: {error}", "quantize last") from error
    narrow, scales = (one.numpy() if last == 0 else one.numpy().transpose(1, 2, 0) for one in factors)
    stored = replace_constant(model, integers, narrow.astype(ml_dtypes.int4))
    group_scales = add_constant(model, f"{stored.name}_group_scales", scales.astype(ml_dtypes.uint4))
    shape = add_constant(model, f"{stored.name}_shape", np.array(values.shape, np.int64))
    floats = [_cast(model, dequantize, one, ir.DataType.FLOAT) for one in (stored, group_scales)]
    product = insert(model, dequantize, "Mul", floats, ir.DataType.FLOAT, stored.shape)
    matrix = insert(model, dequantize, "Reshape", [product, shape], ir.DataType.FLOAT, integers.shape)
    wide = _cast(model, dequantize, matrix, ir.DataType.INT8)
    dequantize.replace_input_with(0, wide)
    drop_unused(model, integers)
    return wide


def _narrow_zero_points(model: ir.Model, node: ir.Node, form: WeightForm) -> None:
    """Zero points have the type of the integers: those of groups become INT4; others are 0 and are removed."""
    zero_points = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_points is not None and node.attributes.get_int("block_size", 0) > 0:
        narrow = replace_constant(model, zero_points, constant_of(zero_points).astype(ml_dtypes.int4))
        node.replace_input_with(2, narrow)
        drop_unused(model, zero_points)
    elif form is WeightForm.DEQUANTIZE:
        node.resize_inputs(2)
        drop_unused(model, zero_points)


def _multiply_by_scales(model: ir.Model, dequantize: ir.Node, integers: ir.Value) -> None:
    """Replace DequantizeLinear, which ONNX Runtime would compute for every image, by Cast and Mul."""
    scale, axis = dequantize.inputs[1], dequantize.attributes.get_int("axis", 1)
    if scale is None:
        raise ValueError("a DequantizeLinear has no scale")
    scales = constant_of(scale)
    shape = [-1 if dim == axis else 1 for dim in range(len(integers.shape or ()))]
    spread = replace_constant(model, scale, scales.reshape(shape) if scales.ndim else scales)
    cast = _cast(model, dequantize, integers, ir.DataType.FLOAT)
    product = insert(model, dequantize, "Mul", [cast, spread], ir.DataType.FLOAT, integers.shape)
    operands = dequantize.inputs[1:]
    redirect(model, dequantize.outputs[0], product, [dequantize])
    for value in operands:
        drop_unused(model, value)
