"""Half precision for float models."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import onnx
import onnx_ir as ir
from onnxruntime.transformers.float16 import convert_float_to_float16

from vitslim.stages.export.overflow import Overflow, find_overflows
from vitslim.workload.contents.read_contents import name_nodes
from vitslim.workload.session import Floats

PLAN, FOUND = "half_precision", "overflows"
"""Keys in the metadata store of an `ir.Model`, which no file contains."""


class RangeImages(NamedTuple):
    """Images on which the ranges of activations are checked."""

    images: Floats
    """float32 (n, C, H, W)."""
    batch: int | None
    """Fixed batch size of the model; None for a dynamic one."""


def plan_ranges(model: ir.Model, images: Floats, batch: int | None) -> None:
    """Record on a model the images for `convert_to_half_precision`."""
    model.meta[PLAN] = RangeImages(images, batch)


def overflows_of(model: ir.Model) -> tuple[Overflow, ...]:
    """Return the operators that `convert_to_half_precision` kept in float32."""
    found: tuple[Overflow, ...] = model.meta.get(FOUND, ())
    return found


def convert_to_half_precision(model: ir.Model) -> None:
    """In place: weights and activations become FLOAT16; the input and the output of the model stay FLOAT.

    Operators that read or compute a value beyond 65,504, on the images of `plan_ranges`, stay in FLOAT, and
    `overflows_of` returns them. Without images nothing is checked.
    """
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    name_nodes(proto)
    _drop_types_of_constants(proto)
    plan: RangeImages | None = model.meta.get(PLAN)
    found = () if plan is None else find_overflows(proto, plan.images, plan.batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning for each tensor with a value below the smallest magnitude
        half: onnx.ModelProto = convert_float_to_float16(
            proto, keep_io_types=True, disable_shape_infer=True, node_block_list=[one.node for one in found]
        )
    model.graph = ir.from_proto(half).graph
    model.meta[FOUND] = found
    _remove_round_trips(model)
    model.graph.sort()  # the converter puts casts of the input after the nodes that read them


def _drop_types_of_constants(model: onnx.ModelProto) -> None:
    """In place: remove declared types of constants, which the converter would change also for those that stay FLOAT."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _remove_round_trips(model: ir.Model) -> None:
    """In place: let a float operator read the float result of another one, where the converter goes through FLOAT16."""
    for node in list(model.graph):
        source = _cast_input(node, ir.DataType.FLOAT)
        narrow = None if source is None else source.producer()
        wide = None if narrow is None else _cast_input(narrow, ir.DataType.FLOAT16)
        if narrow is None or wide is None or wide.dtype != ir.DataType.FLOAT:
            continue
        output = node.outputs[0]
        if output.is_graph_output():
            wide.name, output.name = output.name, f"{output.name}.before"
        ir.convenience.replace_all_uses_with(output, wide, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        if not narrow.outputs[0].uses():
            model.graph.remove(narrow, safe=True)


def _cast_input(node: ir.Node, kind: ir.DataType) -> ir.Value | None:
    """Return the input of a Cast to a type; None for any other node."""
    is_cast = node.op_type == "Cast" and node.attributes.get_int("to", 0) == kind.value
    return node.inputs[0] if is_cast else None
