"""How a graph of ONNX is changed: nodes and constants come in, values take the place of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def insert(
    model: ir.Model, before: ir.Node, kind: str, inputs: Sequence[ir.Value | None], element: ir.DataType | None,
    shape: Any, **attributes: Any,
) -> ir.Value:  # fmt: skip
    """The output, of these elements and this shape, of a new node that stands before another."""
    node = ir.node(kind, inputs, attributes)
    node.outputs[0].type, node.outputs[0].shape = None if element is None else ir.TensorType(element), shape
    model.graph.insert_before(before, node)
    return node.outputs[0]


def redirect(model: ir.Model, old: ir.Value, new: ir.Value, removed: list[ir.Node]) -> None:
    """Whatever reads one value reads another; then these nodes go. An output of the graph keeps its name."""
    if old.is_graph_output():
        old.name, new.name = f"{old.name}.before", old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove(removed, safe=True)


def add_constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    """A new initializer of this name, which must be free."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value
