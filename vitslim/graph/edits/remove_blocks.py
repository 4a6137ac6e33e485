"""Removal of residual branches: the stem replaces the addition, and unused nodes are erased."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import Branch, find_branches
from vitslim.graph.axes.tensor_shapes import tensor_shapes
from vitslim.graph.edits.edit import Edit
from vitslim.graph.model_graph import ModelGraph


@dataclass(frozen=True)
class RemoveBlocks(Edit):
    """Whole blocks or single residual branches are removed; all others keep their names."""

    names: tuple[str, ...]
    """Blocks (`blocks.3`) or branches (`blocks.3.attn`)."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Remove them again."""
        return remove_blocks(graph, self.names)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RemoveBlocks:
        """Rebuild the edit."""
        return cls(tuple(fields["names"]))


def remove_blocks(graph: ModelGraph, names: Sequence[str]) -> ModelGraph:
    """Return a new graph without these blocks (`blocks.3`) or branches (`blocks.3.attn`).

    Removing a block removes all its branches. They are removed one after the other, with their parameters, buffers and
    masks; all others keep name and value. Raises StageError for a name that belongs to no block or branch, and for a
    branch that cannot be removed.
    """
    module = graph.module
    for name in names:
        branches = find_branches(module, tensor_shapes(module, graph.source.image))
        module = without_branches(module, _branches_of(name, branches))
    module = copy.deepcopy(module)
    kept = dict(module.named_parameters(remove_duplicate=False))
    masks = {name: mask.clone() for name, mask in graph.masks.items() if name in kept}
    return replace(graph, module=module, masks=masks, edits=(*graph.edits, RemoveBlocks(tuple(names))))


def without_branches(module: GraphModule, branches: Collection[Branch]) -> GraphModule:
    """Return a module without these branches. It shares its tensors with `module`, which is not changed."""
    graph = copy.deepcopy(module.graph)
    twins = dict(zip(module.graph.nodes, graph.nodes, strict=True))
    removed = {twins[node] for branch in branches for node in (branch.add, *branch.nodes)}
    for branch in branches:
        add = twins[branch.add]
        add.replace_all_uses_with(add.args[branch.stem])
    for node in reversed(graph.nodes):
        if node in removed and not node.users:
            graph.erase_node(node)
    graph.lint()
    return GraphModule(module, graph)  # takes over only the tensors that the graph reads


def _branches_of(name: str, branches: Sequence[Branch]) -> list[Branch]:
    """All branches of the block of that name, or the one branch."""
    own = [branch for branch in branches if name in {branch.block, branch.name}]
    if not own:
        known = {name for branch in branches for name in (branch.block, branch.name)}
        raise StageError(f"the model has no block or residual branch '{name}'", closest(name, known))
    for branch in own:
        if branch.obstacle:
            raise StageError(f"'{branch.name}' cannot be removed: {branch.obstacle}", "leave it in the model")
    return own
