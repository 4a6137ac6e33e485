"""Sizes of merged tokens: where a graph counts them, and where it reads them."""

from __future__ import annotations

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


def are_keys_weighed(block: Block) -> bool | None:
    """Return whether later attentions weigh keys by the sizes after a block; None if the block merges no tokens."""
    sizes = merged_sizes(block)
    return None if sizes is None else any(is_op(user, SIZE_BIAS) for user in sizes.users)


def carries_sizes(anatomy: Anatomy, name: str) -> bool:
    """Return whether operators after a block read sizes of tokens that were merged before it."""
    place = [block.name for block in anatomy.blocks].index(name)
    before, after = anatomy.blocks[:place], anatomy.blocks[place + 1 :]
    return any(merged_sizes(block) is not None for block in before) and any(
        merged_sizes(block) is not None or (block.attention is not None and block.attention.size_bias is not None)
        for block in after
    )
