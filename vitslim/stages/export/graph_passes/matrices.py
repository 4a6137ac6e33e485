"""Flatten the activations of quantized linear layers to matrices, so that the layers become Gemm.

ONNX Runtime adds the bias of a Gemm inside its integer kernel, but the bias of a MatMul in a second pass over the
outputs. OpenVINO is slower with Gemm, so only profiles for ONNX Runtime use this form. Activations
(batch, ..., channels) become (batch * ..., channels). Operators that work on each row by itself (norms, GELU, residual
additions) work on the matrix too, which leaves few Reshape nodes: each of them takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from operator import getitem
from typing import Any

import torch
from torch.fx import Node

from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of
from vitslim.graph.ops.fake_quant import FAKE_QUANT

aten = torch.ops.aten
Shape = tuple[int, ...]


def flatten_to_matrices(graph: ModelGraph) -> None:
    """In place: linear layers with an integer matmul, and the row-wise operators after them, work on matrices.

    Layers without a bias stay, because their MatMul has nothing to add, and so do activations whose batch is not in the
    first dimension.
    """
    matrices = _Matrices(graph)
    for node in list(graph.module.graph.nodes):
        if matrices.can_convert(node):
            matrices.convert(node)
    _merge_reshapes(graph)
    graph.module.graph.eliminate_dead_code()
    graph.module.graph.lint()
    graph.module.recompile()


class _Matrices:
    """The tensors of a graph that exist as matrices (rows, channels)."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph.module.graph
        self._shapes: dict[Node, Any] = tensor_shapes(graph.module, graph.source.image)
        self._of: dict[Node, Node] = {}
        """Tensor to its matrix."""

    def can_convert(self, node: Node) -> bool:
        """Whether a node is an integer matmul or its quantizer, or computes a matrix from matrices."""
        if is_op(node, aten.split_with_sizes.default):
            x = argument(node, 0)
            return x in self._of and argument(node, 2, "dim", 0) in (-1, len(self._shapes[x]) - 1)
        if node.op != "call_function" or not _has_rows(self._shapes.get(node)):
            return False
        if is_op(node, FAKE_QUANT):
            return any(_is_integer_gemm(user) for user in node.users)
        known = any(given in self._of for given in node.all_input_nodes)
        return known and (_is_integer_gemm(node) or _works_by_row(node, self._shapes))

    def convert(self, node: Node) -> None:
        """Compute a node on matrices; its users read the result in its old shape."""
        with self._graph.inserting_before(node):
            args = tuple(self._matrix(given) for given in node.args)
            new = self._graph.call_function(node.target, args, dict(node.kwargs))  # type: ignore[arg-type]
        if is_op(node, aten.split_with_sizes.default):
            new.args, new.kwargs = (*args[:2], 1), {}
            self._of[node] = new
            return
        with self._graph.inserting_after(new):
            restored = self._graph.call_function(aten.reshape.default, (new, (-1, *self._shapes[node][1:])))
        self._of[restored], self._shapes[restored] = new, self._shapes[node]
        node.replace_all_uses_with(restored)
        self._graph.erase_node(node)

    def _matrix(self, given: Any) -> Any:
        """A tensor with a batch as a matrix; anything else as it is."""
        if not isinstance(given, Node):
            return given
        if given not in self._of and _has_rows(self._shapes.get(given)):
            with self._graph.inserting_after(given):
                self._of[given] = self._graph.call_function(
                    aten.reshape.default, (given, (-1, self._shapes[given][-1]))
                )
        return self._of.get(given, given)


def _has_rows(shape: Any) -> bool:
    """Whether a tensor is (batch, ..., channels) and not a matrix yet."""
    if not isinstance(shape, tuple) or len(shape) <= len(("rows", "channels")):
        return False
    first, *others = shape
    return first % BATCH == 0 and prod(others) % BATCH != 0


def _works_by_row(node: Node, shapes: Mapping[Node, Any]) -> bool:
    """Whether each row of the result depends only on the same row of the operands and on constants."""
    shape = shapes[node]
    if is_op(node, getitem):
        return True
    if has_trait(node, Trait.ROW_NORM):
        return len(argument(node, 1)) == 1
    if is_op(node, aten.amax.default):
        return bool(argument(node, 1) == [-1] and argument(node, 2))
    operands = [shapes[given] for given in node.args if isinstance(given, Node)]
    return has_trait(node, Trait.ROWWISE) and all(one in (shape, (*shape[:-1], 1), shape[-1:], ()) for one in operands)


def _is_integer_gemm(node: Node) -> bool:
    """Whether a linear layer has quantized operands, per-channel weight scales and a constant bias."""
    if not is_op(node, aten.linear.default):
        return False
    x, weight = node.args[:2]
    if is_op(x, aten.reshape.default):  # of the matrix that its quantizer gives by now
        x = argument(x, 0)  # type: ignore[arg-type]
    return (
        is_op(x, FAKE_QUANT)
        and is_op(weight, FAKE_QUANT)
        and not argument(weight, 6)  # type: ignore[arg-type]  # group-wise weights have several scales a channel
        and parameter_of(argument(node, 2)) != ""
    )


def _merge_reshapes(graph: ModelGraph) -> None:
    """Let each Reshape of a Reshape read the input of the first one."""
    for node in graph.module.graph.nodes:
        while is_op(node, aten.reshape.default) and is_op(argument(node, 0), aten.reshape.default):
            node.update_arg(0, argument(argument(node, 0), 0))
