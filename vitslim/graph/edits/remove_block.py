"""Removing residual branches: the stem takes the place of the addition, and what nothing reads any more vanishes."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

from torch.fx import GraphModule

from vitslim.errors import StageError, closest
from vitslim.graph.branches import Branch, find_branches
from vitslim.graph.edits.records import RemoveBlock
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.shapes import tensor_shapes


def remove_blocks(graph: ModelGraph, names: Sequence[str]) -> ModelGraph:
    """A new graph without these blocks (`blocks.3`) or branches (`blocks.3.attn`); a block is all its branches.

    They go one after the other. Their parameters, buffers and masks vanish, all others keep name and value. Raises
    StageError for a name that no block or branch has, and for one that cannot go.
    """
    module = graph.module
    for name in names:
        branches = find_branches(module, tensor_shapes(module, graph.source.image))
        module = without_branches(module, _called(name, branches))
    module = copy.deepcopy(module)
    kept = dict(module.named_parameters(remove_duplicate=False))
    masks = {name: mask.clone() for name, mask in graph.masks.items() if name in kept}
    return replace(graph, module=module, masks=masks, edits=(*graph.edits, RemoveBlock(tuple(names))))


def without_branches(module: GraphModule, branches: Collection[Branch]) -> GraphModule:
    """A module that computes the same but for these branches. It shares its tensors with `module`, which stays."""
    graph = copy.deepcopy(module.graph)
    twins = dict(zip(module.graph.nodes, graph.nodes, strict=True))
    gone = {twins[node] for branch in branches for node in (branch.add, *branch.nodes)}
    for branch in branches:
        add = twins[branch.add]
        add.replace_all_uses_with(add.args[branch.stem])
    for node in reversed(graph.nodes):
        if node in gone and not node.users:
            graph.erase_node(node)
    graph.lint()
    return GraphModule(module, graph)  # takes over only what the graph reads


def _called(name: str, branches: Sequence[Branch]) -> list[Branch]:
    """All branches of the block of that name, or the one branch."""
    own = [branch for branch in branches if name in {branch.block, branch.name}]
    if not own:
        known = {name for branch in branches for name in (branch.block, branch.name)}
        raise StageError(f"the model has no block or residual branch '{name}'", closest(name, known))
    for branch in own:
        if branch.obstacle:
            raise StageError(f"'{branch.name}' cannot be removed: {branch.obstacle}", "leave it in the model")
    return own
