"""Rewrite the blocks of a graph with the approximations of FACT."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from torch.fx import GraphModule, Node

from vitslim.graph.anatomy import Linear, descendants, find_anatomy
from vitslim.graph.approximate.fact.layer import CarriedTokens, FactLayer
from vitslim.graph.approximate.fact.mixed_linear import mixed_linear
from vitslim.graph.approximate.fact.prediction import predicted_linear
from vitslim.graph.approximate.sites import Site, find_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.accelerators import FactSettings


def rewrite_fact(module: GraphModule, graph: ModelGraph, settings: FactSettings) -> Node:
    """In place: rewrite the blocks of `module`, which has the nodes of `graph.module` under the same names.

    Q and K are computed twice: by the predictor and by the array. Returns the node of the final state.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    anatomy = find_anatomy(graph)
    state: Node | None = None
    for place, site in enumerate(find_sites(anatomy)):
        attention = site.attention
        node = nodes[attention.node.name]
        predicted = _predicted(module, nodes, site)
        mlp = site.of_role("fc1", "fc2")
        after = argument(mlp[0].node, 0) if mlp else attention.v
        tokens = anatomy.shapes[after][1 if mlp else 2]
        layer = FactLayer(settings, attention.scale, anatomy.prefix_tokens, tokens)
        module.add_submodule(f"fact_{place}", layer)
        bias = None if attention.size_bias is None else nodes[attention.size_bias.name]
        operands = tuple(nodes[one.name] for one in (attention.q, attention.k, attention.v))
        with module.graph.inserting_before(node):
            called = module.graph.call_module(f"fact_{place}", (operands, predicted, bias, state))
            output = module.graph.call_function(operator.getitem, (called, 0))
            state = module.graph.call_function(operator.getitem, (called, 1))
        node.replace_all_uses_with(output)
        module.graph.erase_node(node)  # fused attention counts as impure, and would stay
        squeeze = site.block.squeeze
        reads = {one.node for one in mlp}
        if squeeze is not None and squeeze in descendants(attention.node) and reads & set(descendants(squeeze)):
            state = _carry(module, nodes[squeeze.name], state, f"carried_{place}")
        _quantize(module, nodes, site.of_role("qkv", "proj"), None, settings)
        _quantize(module, nodes, mlp, state, settings)
    if state is None:
        raise ValueError("a graph without attention has no state")
    return state


def _predicted(module: GraphModule, nodes: dict[str, Node], site: Site) -> tuple[Node, Node]:
    """Copy the operators from the layers of Q and K to the attention, with the layers computed by the predictor."""
    layers = {nodes[layer.node.name] for layer in site.of_role("qkv")}
    ends = (nodes[site.attention.q.name], nodes[site.attention.k.name])
    copies: dict[Node, Node] = {}
    needed = _between(layers, ends)
    with module.graph.inserting_before(nodes[site.attention.node.name]):
        for node in (n for n in list(module.graph.nodes) if n in needed):
            if node in layers:
                arguments = (argument(node, 0), argument(node, 1), argument(node, 2, "bias"))
                copies[node] = module.graph.call_function(predicted_linear, arguments)
            else:
                copies[node] = module.graph.node_copy(node, lambda given: copies.get(given, given))
    return copies[ends[0]], copies[ends[1]]


def _between(starts: set[Node], ends: Iterable[Node]) -> set[Node]:
    """Return the nodes on the paths from `starts` to `ends`, both included."""
    before: set[Node] = set()
    queue = list(ends)
    while queue:
        node = queue.pop()
        if node not in before:
            before.add(node)
            queue += [] if node in starts else node.all_input_nodes
    after = {n for start in starts for n in (start, *descendants(start))}
    return before & after


def _carry(module: GraphModule, squeeze: Node, state: Node, name: str) -> Node:
    module.add_submodule(name, CarriedTokens(squeeze.target))
    with module.graph.inserting_after(squeeze):
        return module.graph.call_module(name, (state, tuple(squeeze.args)))


def _quantize(
    module: GraphModule, nodes: dict[str, Node], layers: Iterable[Linear], state: Node | None, settings: FactSettings
) -> None:
    """In place: compute linear layers with INT8 operands, and INT4 for tokens that the state does not name."""
    for layer in layers:
        node = nodes[layer.node.name]
        with module.graph.inserting_before(node):
            high = None if state is None else module.graph.call_function(operator.getitem, (state, 0))
            arguments = (argument(node, 0), argument(node, 1), argument(node, 2, "bias"), high)
            mixed = module.graph.call_function(mixed_linear, (*arguments, settings.ffn.int4_rate == 4))
        node.replace_all_uses_with(mixed)
