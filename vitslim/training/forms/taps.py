"""A module that also returns intermediate values of its graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.fx import GraphModule, Node

from vitslim.graph.nodes import graph_module, tensors_of
from vitslim.graph.outputs import Outputs


class LogitsAndFeatures(NamedTuple):
    """Outputs of a module with taps."""

    logits: Outputs
    """The output of the model: float (b, classes), an embedding, or a tuple of maps."""
    features: tuple[torch.Tensor, ...]
    """One tensor (b, ...) per tapped node, in the order of the nodes."""
    decisions: tuple[torch.Tensor, ...] = ()
    """Of each token predictor, in the training form of a model: (b, patches) of zeros and ones."""


def with_taps(module: GraphModule, nodes: Sequence[Node]) -> GraphModule:
    """Return a module that shares all parameters and returns a pair: the output, and a tuple of the nodes' values."""
    graph = copy.deepcopy(module.graph)
    copies = dict(zip(module.graph.nodes, graph.nodes, strict=True))
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    output.args = ((output.args[0], tuple(copies[node] for node in nodes)),)
    return graph_module(tensors_of(module), graph)
