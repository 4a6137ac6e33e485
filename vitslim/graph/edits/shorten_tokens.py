"""The step that all token-squeezing edits share: one operator that reduces tokens, and fewer tokens after it."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Graph, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import Anatomy, Block
from vitslim.graph.anatomy.token_sizes import size_conflict, sizes_are_read_after, weighed_blocks
from vitslim.graph.edits.slice import resize_tokens
from vitslim.graph.model_graph import ModelGraph


def shorten_tokens(graph: ModelGraph, source: Node, length: int, build: Callable[[Graph, Node], Node]) -> Node:
    """In place: all users of `source`, (batch, tokens, channels), read an operator that leaves `length` tokens of it.

    `length` includes prefix tokens. `build` inserts its nodes right after `source` and returns the one with the
    remaining tokens; its results may not depend on later nodes. Returns that node. Raises StageError, before any
    change, when the graph does not allow another number of tokens after `source`.
    """
    users = list(source.users)
    resize_tokens(graph, source, length)
    nodes = graph.module.graph
    with nodes.inserting_before(source.next):
        shortened = build(nodes, source)
    for user in users:
        user.replace_input_with(source, shortened)
    graph.module.recompile()
    graph.forget_axes()
    return shortened


def require_tokens(anatomy: Anatomy, block: Block, keep: int, extra: int = 0) -> int:
    """Return the number of patch tokens after the attention of a block that shall keep `keep` of them.

    extra: tokens that the operator adds. Raises StageError if the block has fewer, was squeezed before, has no
    attention with a residual connection, if a later squeezed block needs more than are left, or if later blocks read
    the sizes of tokens merged before it.
    """
    if block.attention_residual is None or block.attention is None:
        raise StageError(f"token-squeeze: '{block.name}' has no attention with a residual", "name another block")
    if block.squeeze is not None:
        raise StageError(f"token-squeeze: '{block.name}' is already squeezed", "squeeze each block once")
    patches = anatomy.shapes[block.attention_residual][1] - anatomy.prefix_tokens
    names = [other.name for other in anatomy.blocks]
    if keep < patches and size_conflict(names, weighed_blocks(anatomy), {block.name}):
        raise StageError(f"token-squeeze: {sizes_are_read_after(block.name)}", "merge tokens after all other squeezing")
    later = fewest_needed_later(anatomy, block.name)
    if not max(1, later - extra) <= keep <= patches:
        needed = f", and a later block keeps {later}" if later else ""
        raise StageError(f"token-squeeze: '{block.name}' cannot keep {keep} of {patches} patch tokens{needed}")
    return patches


def fewest_needed_later(anatomy: Anatomy, name: str) -> int:
    """Return the largest number of patch tokens that a squeezed block after the named one leaves; 0 without one."""
    names = [block.name for block in anatomy.blocks]
    later = [block.squeeze for block in anatomy.blocks[names.index(name) + 1 :] if block.squeeze is not None]
    return max((anatomy.shapes[squeeze][1] - anatomy.prefix_tokens for squeeze in later), default=0)
