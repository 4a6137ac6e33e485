"""Rewrite the attentions of a graph with the approximations of SpAtten."""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.approximate.sites import find_sites, token_means
from vitslim.graph.approximate.spatten.layer import LayerPlan, SpattenLayer
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.ops.masked_tokens import MASKED_MEAN
from vitslim.recipe.accelerators import SpattenSettings


def layer_plans(graph: ModelGraph, settings: SpattenSettings) -> tuple[LayerPlan, ...]:
    """Return the counts of each attention of a graph, which the schedule of the settings determines."""
    anatomy = find_anatomy(graph)
    sites, prefix = find_sites(anatomy), anatomy.prefix_tokens
    arriving = [anatomy.shapes[site.attention.k][2] for site in sites]
    left = arriving
    if settings.token.is_active:
        left = list(settings.token.kept(arriving[0], len(sites), least=prefix + 1))
        arriving = [arriving[0], *left[:-1]]
    heads = [site.attention.heads for site in sites]
    if settings.head.is_active:
        heads = list(settings.head.kept(heads[0], len(sites)))
    return tuple(LayerPlan(k, t, h, prefix) for k, t, h in zip(arriving, left, heads, strict=True))


def rewrite_spatten(module: GraphModule, graph: ModelGraph, settings: SpattenSettings) -> Node:
    """In place: rewrite the attentions of `module`, which has the nodes of `graph.module` under the same names.

    Returns the node of the final state.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    anatomy = find_anatomy(graph)
    state: Node | None = None
    plans = layer_plans(graph, settings)
    for place, (site, plan) in enumerate(zip(find_sites(anatomy), plans, strict=True)):
        attention, name = site.attention, f"spatten_{place}"
        node = nodes[attention.node.name]
        module.add_submodule(name, SpattenLayer(settings, plan, attention.scale))
        bias = None if attention.size_bias is None else nodes[attention.size_bias.name]
        operands = tuple(nodes[one.name] for one in (attention.q, attention.k, attention.v))
        with module.graph.inserting_before(node):
            called = module.graph.call_module(name, (*operands, bias, state))
            output = module.graph.call_function(operator.getitem, (called, 0))
            state = module.graph.call_function(operator.getitem, (called, 1))
        node.replace_all_uses_with(output)
        module.graph.erase_node(node)  # fused attention counts as impure, and would stay
    if state is None:
        raise ValueError("a graph without attention has no state")
    if settings.token.is_active:
        for mean in token_means(graph, anatomy):
            _mask_mean(module, nodes[mean.name], state, plans[-1].prefix)
    return state


def _mask_mean(module: GraphModule, mean: Node, state: Node, prefix: int) -> None:
    """In place: average over the tokens that are left."""
    graph = module.graph
    with graph.inserting_before(mean):
        tokens = graph.call_function(operator.getitem, (state, 0))
        patches = graph.call_function(operator.getitem, (tokens, (slice(None), slice(prefix, None))))
        decision = graph.call_method("to", (patches, argument(mean, 0)))
        masked = graph.call_function(MASKED_MEAN, (argument(mean, 0), decision, argument(mean, 2, "keepdim", False)))
    mean.replace_all_uses_with(masked)
