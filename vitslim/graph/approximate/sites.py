"""The attentions of a graph that an accelerator computes, and the models that it cannot compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from vitslim.graph.anatomy import Anatomy, Attention, Block, Linear, descendants, find_anatomy, squeeze_obstacle
from vitslim.graph.anatomy.attention import find_attentions
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.recipe.accelerators import Accelerator, FactSettings, SpattenSettings

aten = torch.ops.aten


@dataclass(frozen=True)
class Site:
    """One attention and the layers of its block."""

    block: Block
    attention: Attention
    linears: tuple[Linear, ...]
    """All layers of the block with a weight."""

    def of_role(self, *roles: str) -> tuple[Linear, ...]:
        """Return the layers of the block with one of these roles: qkv, proj, fc1, fc2."""
        return tuple(layer for layer in self.linears if layer.role in roles)


def find_sites(anatomy: Anatomy) -> tuple[Site, ...]:
    """Return the attention of each block that has one, in order."""
    return tuple(
        Site(block, block.attention, tuple(layer for layer in anatomy.linears if layer.block == block.name))
        for block in anatomy.blocks
        if block.attention is not None
    )


def approximation_obstacle(graph: ModelGraph, settings: Accelerator) -> str:
    """Return the reason that an accelerator cannot compute a model, as the end of a sentence; empty if it can."""
    anatomy = find_anatomy(graph)
    sites = find_sites(anatomy)
    if not sites:
        return "it has no attention over tokens"
    for site in sites:
        if site.attention.windowed:
            return f"attention of '{site.block.name}' attends within windows of tokens"
        if site.attention.biased:
            return f"attention of '{site.block.name}' adds a bias for each pair of positions"
    if len(find_attentions(graph.module.graph, anatomy.shapes)) != len(sites):
        return "an attention outside the blocks pools the tokens"
    match settings:
        case SpattenSettings():
            return _spatten_obstacle(graph, anatomy, sites, settings)
        case FactSettings():
            return _fact_obstacle(sites)


def _spatten_obstacle(graph: ModelGraph, anatomy: Anatomy, sites: tuple[Site, ...], settings: SpattenSettings) -> str:
    if settings.head.is_active and len({site.attention.heads for site in sites}) > 1:
        return "its blocks have different numbers of heads, and a head that is pruned stays pruned in all later blocks"
    if not settings.token.is_active:
        return ""
    if any(block.squeeze is not None for block in anatomy.blocks):
        return "it already reduces its tokens, and `token.pruning_ratio` would prune them again"
    reason = squeeze_obstacle(anatomy) or _pooling_obstacle(graph, anatomy, sites)
    return f"its tokens cannot be pruned: {reason}" if reason else ""


def _fact_obstacle(sites: tuple[Site, ...]) -> str:
    for site in sites:
        qkv = site.of_role("qkv")
        if not qkv or not all(is_op(layer.node, aten.linear.default) for layer in qkv):
            return f"Q and K of '{site.block.name}' do not come from linear layers"
    return ""


def _pooling_obstacle(graph: ModelGraph, anatomy: Anatomy, sites: tuple[Site, ...]) -> str:
    """Return an operator after the last attention that reads pruned tokens other than by their mean; empty without."""
    tokens = anatomy.shapes[sites[-1].attention.k][2]
    lengths = (tokens, tokens - anatomy.prefix_tokens)
    means = token_means(graph, anatomy)
    for node in descendants(sites[-1].attention.node):
        sources = [n for n in node.all_input_nodes if _has_tokens(anatomy, n, lengths)]
        if not sources or _has_tokens(anatomy, node, lengths) or node in means or node.op == "output":
            continue
        shape = anatomy.shapes.get(node)
        in_attention = shape is not None and len(shape) > 3
        selects = is_op(node, aten.select.int) and argument(node, 1) == 1
        selects = selects and 0 <= argument(node, 2) < anatomy.prefix_tokens
        prefix_only = is_op(node, aten.slice.Tensor) and shape is not None and shape[1] <= anatomy.prefix_tokens
        if not (in_attention or selects or prefix_only):
            return f"'{node.name}' pools tokens by another operator than their mean"
    return ""


def _has_tokens(anatomy: Anatomy, node: Node, lengths: tuple[int, ...]) -> bool:
    shape = anatomy.shapes.get(node)
    return isinstance(shape, tuple) and len(shape) == 3 and shape[1] in lengths


def token_means(graph: ModelGraph, anatomy: Anatomy) -> tuple[Node, ...]:
    """Return the nodes after the last attention that average over tokens, all patch tokens among them."""
    last = find_sites(anatomy)[-1].attention
    patches = anatomy.shapes[last.k][2] - anatomy.prefix_tokens
    found = []
    for node in graph.module.graph.find_nodes(op="call_function", target=aten.mean.dim):
        shape = anatomy.shapes[argument(node, 0)]
        if len(shape) == 3 and [dim % 3 for dim in argument(node, 1)] == [1] and shape[1] >= patches:
            found.append(node)
    return tuple(found)
