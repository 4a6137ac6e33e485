"""Inputs of layers divided, token by token, by their largest value: one step of codes then suits all tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.edits.records import DivideTokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, tensor_of

aten = torch.ops.aten
DIVIDED_PREFIX = "vitslim.d."
BOUNDED_BELOW = (
    aten.relu.default, aten.gelu.default, aten.silu.default, aten.hardswish.default, aten.softplus.default,
    aten.mish.default,
)  # fmt: skip
"""Operators whose results are nowhere far below zero, so that the largest value of a token is that farthest from it."""


def divide_tokens(graph: ModelGraph, floors: Mapping[str, float]) -> ModelGraph:
    """A new graph that computes the same, in which linear layers read `x / r` and have their outputs multiplied by r.

    r is the largest magnitude of each token, (..., 1), and at least the floor of the layer, positive. The bias is added
    behind; the layer gets one of its own, of zeros, which a correction may move. Layers that read one tensor share its
    division, with the floor of the first. Raises StageError for a weight that no linear layer has.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    divided: dict[Node, tuple[Node, Node]] = {}
    for weight, floor in floors.items():
        nodes = layers.get(weight, ())
        if not nodes or not all(is_op(node, aten.linear.default) for node in nodes):
            raise StageError(f"no linear layer has a weight '{weight}'", closest(weight, layers))
        _add_bias(new.module, weight)
        for node in nodes:
            source = argument(node, 0)
            if source not in divided:
                divided[source] = _divide(new.module.graph, source, floor)
            _multiply_back(new.module.graph, node, weight, *divided[source])
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, DivideTokens(dict(floors)))
    return new


def divided_layers(graph: ModelGraph) -> frozenset[str]:
    """Names of the weights of layers whose tokens are divided by now."""
    return frozenset(weight for edit in graph.edits if isinstance(edit, DivideTokens) for weight in edit.floors)


def is_bounded_below(node: Node) -> bool:
    """Whether what a node gives is nowhere far below zero."""
    return is_op(node, *BOUNDED_BELOW)


def _add_bias(module: GraphModule, weight: str) -> None:
    matrix = tensor_of(module, weight)
    holder = nn.Module()
    holder.register_parameter("bias", nn.Parameter(matrix.new_zeros(len(matrix))))
    module.add_submodule(DIVIDED_PREFIX + layer_of(weight), holder)


def _divide(graph: Graph, source: Node, floor: float) -> tuple[Node, Node]:
    """Tokens divided, and by what."""
    with graph.inserting_before(source.next):
        size = source if is_bounded_below(source) else graph.call_function(aten.abs.default, (source,))
        largest = graph.call_function(aten.amax.default, (size, [-1], True))
        divisor = graph.call_function(aten.clamp.default, (largest, floor))
        return graph.call_function(aten.div.Tensor, (source, divisor)), divisor


def _multiply_back(graph: Graph, node: Node, weight: str, quotient: Node, divisor: Node) -> None:
    bias, users = argument(node, 2), list(node.users)
    with graph.inserting_before(node):
        own = graph.get_attr(f"{DIVIDED_PREFIX}{layer_of(weight)}.bias")
    node.args = (quotient, argument(node, 1), own)
    with graph.inserting_before(node.next):
        result = graph.call_function(aten.mul.Tensor, (node, divisor))
        if bias is not None:
            result = graph.call_function(aten.add.Tensor, (result, bias))
    for user in users:
        user.replace_input_with(node, result)
