"""A model that shows what some of its nodes compute, beside its logits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node

from vitslim.graph.nodes import graph_module, tensors_of


class Tapped(NamedTuple):
    """What a tapped model gives."""

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...]
    """One tensor a tapped node, in their order."""


def with_taps(module: GraphModule, nodes: Sequence[Node]) -> GraphModule:
    """A module with the same parameters that gives a pair: what it gave, and a tuple of what the nodes compute."""
    graph = copy.deepcopy(module.graph)
    twins = dict(zip(module.graph.nodes, graph.nodes, strict=True))
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = ((output.args[0], tuple(twins[node] for node in nodes)),)
    return graph_module(tensors_of(module), graph)
