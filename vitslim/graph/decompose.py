"""Decomposition of fused attention into matmuls, for export and for the quantization of its operands.

The exporter's own decomposition computes the shape of the key at run time and scales both operands. Also, the memory
layout of the fused operator's result depends on the kernel that torch selects, and the exporter writes views that fit
only one layout.
"""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter, Node

from vitslim.errors import StageError
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument

aten = torch.ops.aten


def decompose_attention(graph: ModelGraph, chosen: Collection[Node] | None = None) -> None:
    """Replace each fused attention, or the chosen ones, by `softmax((q * scale) @ k^T + mask) @ v`, in place.

    The scale goes to the query, which is smaller than the scores. Raises StageError for attention that is causal, has
    dropout or shares keys between queries: no vision transformer has it.
    """
    nodes = [
        node
        for node in graph.module.graph.nodes
        if has_trait(node, Trait.ATTENTION) and (chosen is None or node in chosen)
    ]
    operands = _operands(graph, nodes)
    for node in nodes:
        _replace(graph, node, operands)
    graph.module.graph.lint()
    graph.module.recompile()


def _replace(graph: ModelGraph, node: Node, operands: dict[Node, torch.Tensor]) -> None:
    dropout, causal = argument(node, 4, "dropout_p", 0.0), argument(node, 5, "is_causal", False)
    if dropout or causal or argument(node, 7, "enable_gqa", False):
        raise StageError("causal, grouped-query or dropout attention cannot be exported")
    query, key, value = node.args[:3]
    mask = argument(node, 3, "attn_mask")
    scale = argument(node, 6, "scale")
    if scale is None:
        scale = 1.0 / sqrt(operands[argument(node, 0)].shape[-1])
    call = graph.module.graph.call_function
    with graph.module.graph.inserting_before(node):
        scaled = call(aten.mul.Tensor, (query, scale))
        scores = call(aten.matmul.default, (scaled, call(aten.transpose.int, (key, -2, -1))))
        if mask is not None and operands[mask].dtype == torch.bool:
            scores = call(aten.masked_fill.Scalar, (scores, call(aten.logical_not.default, (mask,)), float("-inf")))
        elif mask is not None:
            scores = call(aten.add.Tensor, (scores, mask))
        result = call(aten.matmul.default, (call(aten.softmax.int, (scores, -1)), value))
    node.replace_all_uses_with(result)
    graph.module.graph.erase_node(node)


def _operands(graph: ModelGraph, nodes: list[Node]) -> dict[Node, torch.Tensor]:
    """Queries and masks of the given nodes, as tensors that have a shape and a type but no data."""
    recorded = {operand for node in nodes for operand in node.all_input_nodes}
    recorder = _Recorder(graph.module, recorded)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        recorder.run(torch.empty(2, *graph.source.image))
    return recorder.seen


class _Recorder(Interpreter):
    def __init__(self, module: torch.fx.GraphModule, recorded: set[Node]) -> None:
        super().__init__(module)
        self.recorded = recorded
        self.seen: dict[Node, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self.recorded:
            self.seen[n] = result
        return result
