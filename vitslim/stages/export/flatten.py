"""Quantised linear layers as products of two matrices.

ONNX Runtime adds the bias of a Gemm inside its integer kernel, that of a MatMul in a pass of its own over the outputs.
OpenVINO is slower with Gemm, so that only the form for ONNX Runtime is written so.
"""

from __future__ import annotations

from math import prod

import torch
from torch.fx import GraphModule, Node

from vitslim.graph.attention import parameter_of
from vitslim.graph.insert_fake_quant import FAKE_QUANT, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.shapes import BATCH, tensor_shapes

aten = torch.ops.aten


def flatten_linears(graph: ModelGraph) -> None:
    """In place: inputs (batch, ..., in) of linear layers whose product is of integers become (batch * ..., in).

    Left alone are layers without a bias, whose MatMul has nothing to add, and inputs in which the batch is not the
    first dimension.
    """
    module = graph.module
    shapes = tensor_shapes(module, graph.source.image)
    for node in (node for nodes in layer_nodes(module).values() for node in nodes if _is_integer_product(node)):
        first, *others = shapes[node]
        if others[:-1] and first % BATCH == 0 and prod(others) % BATCH:
            _flatten(module, node, tuple(others), shapes[argument(node, 0)][-1])
    module.graph.lint()
    module.recompile()


def _is_integer_product(node: Node) -> bool:
    """Whether both operands are codes with one step for each output channel, and a constant is added."""
    x, weight = node.args[:2]
    return (
        is_op(node, aten.linear.default)
        and is_op(x, FAKE_QUANT)
        and is_op(weight, FAKE_QUANT)
        and not argument(weight, 6)  # type: ignore[arg-type]  # blocks have several steps
        and parameter_of(argument(node, 2)) != ""
    )


def _flatten(module: GraphModule, layer: Node, others: tuple[int, ...], width: int) -> None:
    """Reshape before the quantiser and behind the layer, (batch * ..., width) between the two."""
    quantiser = argument(layer, 0)
    graph = module.graph
    with graph.inserting_before(quantiser):
        rows = graph.call_function(aten.reshape.default, (quantiser.args[0], (-1, width)))
        codes = graph.call_function(FAKE_QUANT, (rows, *quantiser.args[1:]))
    layer.replace_input_with(quantiser, codes)
    with graph.inserting_after(layer):
        restored = graph.call_function(aten.reshape.default, (layer, (-1, *others)))
    layer.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not restored)
