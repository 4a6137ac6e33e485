"""Constant folding and fusion by onnxscript."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer


def optimize(model: ir.Model) -> None:
    """In place: fold constants and fuse operators with the optimizer of onnxscript."""
    onnxscript.optimizer.optimize(model)
    restore_constants(model)


def restore_constants(model: ir.Model) -> None:
    """In place: register constants that nodes use but the graph lacks.

    The optimizer of onnxscript gives the limits of all Clip nodes of one value the same names and keeps only one pair.
    """
    missing = [
        value for node in model.graph for value in node.inputs
        if value is not None and value.const_value is not None and value.producer() is None and value.graph is None
    ]  # fmt: skip
    for value in dict.fromkeys(missing):
        model.graph.register_initializer(value)


def sort_nodes(model: ir.Model) -> None:
    """In place: order nodes topologically. Constants that were folded last may stand after the nodes that use them."""
    model.graph.sort()
