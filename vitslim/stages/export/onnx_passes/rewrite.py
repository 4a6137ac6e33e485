"""Edit an ONNX graph: insert nodes, replace values, add and remove constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]


def insert(
    model: ir.Model, before: ir.Node, kind: str, inputs: Sequence[ir.Value | None], element: ir.DataType | None,
    shape: Any, **attributes: Any,
) -> ir.Value:  # fmt: skip
    """Insert a node before another one; returns its output, of this element type and shape."""
    node = ir.node(kind, inputs, attributes)
    node.outputs[0].type, node.outputs[0].shape = None if element is None else ir.TensorType(element), shape
    model.graph.insert_before(before, node)
    return node.outputs[0]


def redirect(model: ir.Model, old: ir.Value, new: ir.Value, removed: list[ir.Node]) -> None:
    """Replace all uses of a value by another, then remove these nodes. An output of the graph keeps its name."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.before", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(removed, safe=True)


def add_constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Add an initializer. No other value may have this name."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def replace_constant(model: ir.Model, old: ir.Value, array: Array) -> ir.Value:
    """Add an initializer under the name of an old one, which is renamed until `drop_unused` removes it."""
    name = str(old.name)
    initializers = model.graph.initializers
    if old.is_initializer():
        initializers.pop(name)
        old.name = f"{name}.replaced"
        initializers.add(old)
    return add_constant(model, name, array)


def drop_unused(model: ir.Model, value: ir.Value | None) -> None:
    """Remove an initializer that no node uses."""
    if value is not None and value.is_initializer() and not value.uses():
        model.graph.initializers.pop(str(value.name))


def find_constant(value: ir.Value | None) -> Array | None:
    """Return the array of an initializer or of a Constant node; None for a computed value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_of(value: ir.Value | None) -> Array:
    """Return the array of an initializer or of a Constant node. Raises ValueError for a computed value."""
    array = find_constant(value)
    if array is None:
        raise ValueError(f"'{'' if value is None else value.name}' is not a constant")
    return array
