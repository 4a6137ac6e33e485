"""Per-token division of input activations by their largest magnitude, so that one scale fits all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, tensor_of

aten = torch.ops.aten
DIVIDED_PREFIX = "vitslim.d."


@dataclass(frozen=True)
class DivideTokens(Edit):
    """Input activations are divided per token by their largest magnitude, and outputs multiplied by it."""

    floors: dict[str, float]
    """Weight name to the smallest divisor."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert the divisions again."""
        return divide_tokens(graph, self.floors)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> DivideTokens:
        """Rebuild the edit."""
        return cls(dict(fields["floors"]))


def divide_tokens(graph: ModelGraph, floors: Mapping[str, float]) -> ModelGraph:
    """Return a new graph with the same outputs, whose linear layers read `x / r` and multiply their output by `r`.

    r is the largest magnitude of each token, shape (..., 1), and at least the floor of the layer, which is positive.
    The bias is added after the multiplication; the layer itself gets a bias of zeros for bias correction. Layers that
    read the same tensor share its division, with the floor of the first. Raises StageError for a weight that belongs
    to no linear layer.
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
    """Names of the weights of layers whose tokens are divided."""
    return frozenset(weight for edit in graph.edits if isinstance(edit, DivideTokens) for weight in edit.floors)


def is_bounded_below(node: Node) -> bool:
    """Whether the results of a node are nowhere far below zero."""
    return has_trait(node, Trait.BOUNDED_BELOW)


def _add_bias(module: GraphModule, weight: str) -> None:
    matrix = tensor_of(module, weight)
    holder = nn.Module()
    holder.register_parameter("bias", nn.Parameter(matrix.new_zeros(len(matrix))))
    module.add_submodule(DIVIDED_PREFIX + layer_of(weight), holder)


def _divide(graph: Graph, source: Node, floor: float) -> tuple[Node, Node]:
    """Insert the division of `source`; returns the quotient and the divisor."""
    with graph.inserting_before(source.next):
        magnitude = source if is_bounded_below(source) else graph.call_function(aten.abs.default, (source,))
        largest = graph.call_function(aten.amax.default, (magnitude, [-1], True))
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
