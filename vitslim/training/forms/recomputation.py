"""Activation checkpointing: activations inside a part of the model are computed again in the backward pass.

Source: Chen et al., "Training deep nets with sublinear memory cost", 2016.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

NODES_MIN = 8
"""Fewest nodes of a part: a transformer block has about twenty."""


class Recomputed(nn.Module):
    """A part of a model that keeps its inputs only, for the backward pass."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any) -> Any:
        """Return the outputs of the part."""
        return checkpoint(self.part, *inputs, use_reentrant=False)


def with_recomputation(module: GraphModule) -> nn.Module:
    """Return a module that shares all parameters and computes the activations inside its parts twice.

    Parts end where a single activation leads to the rest of the model, which is between residual branches. Random
    numbers are drawn again from the same state.
    """
    parts = find_parts(module.graph)
    divided = split_module(module, module, lambda node: parts[node])
    for name, part in list(divided.named_children()):
        if name.startswith("submod_"):
            setattr(divided, name, Recomputed(part))
    return divided


def find_parts(graph: Graph) -> dict[Node, int]:
    """Return the number of the part of each node, in the order of the graph."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    last_use = {node: max((order[user] for user in node.users if user.op != "output"), default=-1) for node in order}
    parts: dict[Node, int] = {}
    part = size = 0
    live: set[Node] = set()
    for node, place in order.items():
        parts[node] = part
        if node.op == "get_attr":
            continue
        live = {one for one in live if last_use[one] > place}
        if last_use[node] > place:
            live.add(node)
        size += 1
        if len(live) == 1 and size >= NODES_MIN:
            part, size = part + 1, 0
    return parts
