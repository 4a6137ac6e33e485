"""Describe the token squeezes of an exported graph for the metadata of its file."""

from __future__ import annotations

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits import InsertPredictors, InsertSqueeze, MergeTokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument


def token_squeezes(graph: ModelGraph, exported: ModelGraph) -> dict[str, str]:
    """Map each block that squeezes tokens to its numbers of tokens, prefix tokens included, and its method.

    exported: a copy of the graph after the graph passes, which remove squeezes of unused tokens.
    """
    methods: dict[str, str] = {}
    for edit in graph.edits:
        if isinstance(edit, InsertSqueeze | InsertPredictors | MergeTokens):
            blocks = edit.counts if isinstance(edit, MergeTokens) else edit.keep
            methods |= dict.fromkeys(blocks, edit.method)
    if not methods:
        return {}
    left = {node.name for node in exported.module.graph.nodes if has_trait(node, Trait.SQUEEZE)}
    anatomy, found = find_anatomy(graph), dict[str, str]()
    for block in anatomy.blocks:
        node = block.squeeze
        if node is not None and node.name in left:
            before, after = (anatomy.shapes[one][1] for one in (argument(node, 0), node))
            found[block.name] = f"{before} to {after} tokens ({methods[block.name]})"
    return found
