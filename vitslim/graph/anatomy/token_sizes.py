"""Sizes of merged tokens: where a graph counts them, and where it reads them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch.fx import Node

from vitslim.graph.anatomy.blocks import Anatomy, Block
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.ops.merge import MERGE_ALTERNATE, MERGE_RANKED, SIZE_BIAS


def merged_sizes(block: Block) -> Node | None:
    """Return the sizes of the tokens after a block; None if the block merges no tokens."""
    if block.squeeze is None or not is_op(block.squeeze, MERGE_ALTERNATE, MERGE_RANKED):
        return None
    sizes: Node = argument(block.squeeze, 3)
    return sizes


def _are_keys_weighed(block: Block) -> bool | None:
    """Return whether later attentions weigh keys by the sizes after a block; None if the block merges no tokens."""
    sizes = merged_sizes(block)
    return None if sizes is None else any(is_op(user, SIZE_BIAS) for user in sizes.users)


def size_conflict(blocks: Sequence[str], merged: Mapping[str, bool], others: Collection[str]) -> str:
    """Return the first block that squeezes tokens without their sizes, although later blocks read these sizes.

    blocks: all names in graph order. merged: blocks that merge tokens, and whether all later attentions weigh keys by
    size. others: blocks that squeeze tokens in another way. Returns an empty string if there is no such block.
    """
    for place, name in enumerate(blocks):
        before = [merged[block] for block in blocks[:place] if block in merged]
        are_read = any(block in merged for block in blocks[place + 1 :]) or (any(before) and place + 1 < len(blocks))
        if name in others and before and are_read:
            return name
    return ""


def sizes_are_read_after(block: str) -> str:
    """Return the reason why such a block cannot squeeze tokens."""
    return f"blocks after '{block}' read the sizes of tokens that were merged before it"


def weighed_blocks(anatomy: Anatomy) -> dict[str, bool]:
    """Return the blocks that merge tokens, and whether later attentions weigh keys by their sizes."""
    found = {block.name: _are_keys_weighed(block) for block in anatomy.blocks}
    return {name: weighed for name, weighed in found.items() if weighed is not None}
