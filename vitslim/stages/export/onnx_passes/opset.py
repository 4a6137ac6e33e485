"""Write a model with the operators of another opset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import MappingProxyType

import numpy as np
import onnx
import onnx_ir as ir

from vitslim.errors import StageError
from vitslim.recipe.formats.file_form import OPSETS
from vitslim.stages.export.onnx_passes.rewrite import add_constant, drop_unused, find_constant, insert, redirect

TARGET = "opset"
"""Key in the metadata store of an `ir.Model`, which no file contains."""
CHANGED = MappingProxyType({"GroupNormalization": 21})
"""Operators whose inputs mean something else before an opset, although their form is the same."""
STANDARD = ("", "ai.onnx")


def plan_opset(model: ir.Model, opset: int) -> None:
    """Record on a model the opset of its file, for `convert_opset`."""
    model.meta[TARGET] = opset


def convert_opset(model: ir.Model) -> None:
    """In place: give the model the opset that `plan_opset` recorded.

    An operator that the opset has in the same form stays. Gelu becomes Erf or Tanh, and constant axes of reductions
    become attributes. Raises StageError for any other operator, with the lowest opset that has it.
    """
    target: int = model.meta.get(TARGET, model.opset_imports[""])
    current = model.opset_imports[""]
    if target == current:
        return
    for node in list(model.graph):
        if node.domain not in STANDARD:
            continue
        _drop_defaults(node, current, target)
        if _exists(node, target):
            continue
        rewrite = _rewriter(node)
        if rewrite is None or not rewrite(model, node):
            raise _missing(node, target, current)
    model.opset_imports[""] = target


def _missing(node: ir.Node, target: int, current: int) -> StageError:
    lowest = next((one for one in range(target + 1, current + 1) if _exists(node, one)), current)
    return StageError(
        f"opset {target} has no {_form(node)}, which '{node.name}' needs; opset {lowest} has it",
        f"set `opset: {lowest}`, or a number from {lowest} to {OPSETS[1]}, in the export stage",
    )


def _form(node: ir.Node) -> str:
    """Return an operator with the types of its inputs below 16 bits, such as `DequantizeLinear of INT4`."""
    narrow = [
        value.dtype.name for value in node.inputs if value is not None and value.dtype and value.dtype.itemsize < 2
    ]
    return f"{node.op_type} of {narrow[0]}" if narrow else node.op_type


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """Return the definition of an operator in an opset; None if the opset does not have it."""
    try:
        return onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _exists(node: ir.Node, opset: int) -> bool:
    """Whether an opset has the operator with the inputs, attributes and types of a node."""
    schema = _schema(node, opset)
    if schema is None or schema.deprecated or opset < CHANGED.get(node.op_type, 0):
        return False
    if not schema.attributes.keys() >= node.attributes.keys():
        return False
    if not schema.min_input <= len(node.inputs) <= schema.max_input or len(node.outputs) > schema.max_output:
        return False
    return all(_allowed(node, schema))


def _allowed(node: ir.Node, schema: onnx.defs.OpSchema) -> Iterator[bool]:
    """Yield for each input and output of a node whether the definition allows its type."""
    for values, parameters in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is not None and value.dtype is not None:
                yield f"tensor({value.dtype.name.lower()})" in parameters[min(index, len(parameters) - 1)].types


def _drop_defaults(node: ir.Node, current: int, target: int) -> None:
    """Remove attributes that the target lacks and that have the default value of the current opset."""
    new, old = _schema(node, current), _schema(node, target)
    for name in [] if new is None or old is None else node.attributes.keys() - old.attributes.keys():
        default = new.attributes[name].default_value  # type: ignore[union-attr]
        if default.name and onnx.helper.get_attribute_value(default) == node.attributes[name].value:
            node.attributes.pop(name)


def _rewriter(node: ir.Node) -> Callable[[ir.Model, ir.Node], bool] | None:
    if node.op_type == "Gelu":
        return _decompose_gelu
    return _axes_as_attribute if node.op_type.startswith("Reduce") else None


def _axes_as_attribute(model: ir.Model, node: ir.Node) -> bool:
    """Move the axes of a reduction from an input to an attribute, where reductions had them before opset 18."""
    axes = find_constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or not axes.size:
        return False
    unused = node.inputs[1]
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
    drop_unused(model, unused)
    return True


def _decompose_gelu(model: ir.Model, node: ir.Node) -> bool:
    """Write Gelu as the chain of operators that runtimes fuse to it again."""
    x = node.inputs[0]
    if x is None or x.dtype is None:
        return False
    kind, shape = x.dtype, x.shape

    def constant(name: str, value: float) -> ir.Value:
        return add_constant(model, f"{node.outputs[0].name}.{name}", np.array(value, kind.numpy()))

    def add(operator: str, *operands: ir.Value) -> ir.Value:
        return insert(model, node, operator, operands, kind, shape)

    if node.attributes.get_string("approximate", "none") == "tanh":
        cube = add("Mul", add("Mul", x, x), x)
        inner = add("Add", x, add("Mul", cube, constant("cubic", 0.044715)))
        curve = add("Tanh", add("Mul", inner, constant("factor", math.sqrt(2 / math.pi))))
    else:
        curve = add("Erf", add("Div", x, constant("root", math.sqrt(2))))
    product = add("Mul", x, add("Add", curve, constant("one", 1.0)))
    redirect(model, node.outputs[0], add("Mul", product, constant("half", 0.5)), [node])
    return True
