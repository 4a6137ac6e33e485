"""Conditions that a model must meet so that its tokens can be squeezed."""

from __future__ import annotations

from torch.fx import Node

from vitslim.graph.anatomy.blocks import Anatomy, Block
from vitslim.graph.anatomy.flow import ancestors, descendants
from vitslim.graph.axes.operators import Trait, has_trait


def squeeze_obstacle(anatomy: Anatomy) -> str:
    """Return the reason that tokens of a model cannot be squeezed, as the end of a sentence; empty if they can be."""
    if not any(block.attention for block in anatomy.blocks):
        return "it has no attention over tokens"
    fixed = [reason for block in anatomy.blocks if (reason := _fixed_positions(block))]
    if fixed:
        return fixed[0]
    for block in anatomy.blocks:
        reason = _irregular(block, anatomy, anatomy.token_node)
        if reason:
            return reason
    table = _position_table(anatomy)
    return f"a position table is added inside the blocks (at '{table}')" if table else ""


def _fixed_positions(block: Block) -> str:
    if block.attention is None:
        return ""
    if block.attention.windowed:
        return f"attention of '{block.name}' attends within windows of tokens, which must stay full"
    if block.attention.biased:
        return f"attention of '{block.name}' adds a bias for each pair of positions, which squeezing would misassign"
    return ""


def _irregular(block: Block, anatomy: Anatomy, token_node: Node | None) -> str:
    """Return the reason that a block is not attention over all tokens, an addition and an MLP; empty if it is."""
    attention, residual = block.attention, block.attention_residual
    if attention is None or residual is None:
        return f"'{block.name}' has no attention with a residual connection"
    if token_node is not None and token_node not in ancestors(attention.q):
        return f"the class token is missing in '{block.name}'"
    if anatomy.shapes[attention.q][2] != anatomy.shapes[attention.k][2]:
        return f"in '{block.name}' only some of the tokens attend"
    after = set(descendants(residual))
    mlp = [layer.node for layer in anatomy.linears if layer.weight in block.mlp]
    if not mlp or not after.issuperset(mlp):
        return f"in '{block.name}' the MLP does not follow the attention"
    return ""


def _position_table(anatomy: Anatomy) -> str:
    """Return the name of a node in or after the first attention that combines tokens with a constant per token."""
    attentions = [block.attention for block in anatomy.blocks if block.attention]
    nodes = list(descendants(attentions[0].node))
    for attention in attentions:
        for operand in (attention.q, attention.k):
            nodes += [operand, *ancestors(operand, (Trait.LAYER,))]
    from_image = {n for x in attentions[0].node.graph.find_nodes(op="placeholder") for n in descendants(x)}
    for node in nodes:
        if node in from_image and has_trait(node, Trait.COMBINES):
            others = [n for n in node.all_input_nodes if n not in from_image and n in anatomy.shapes]
            if any(_counts_tokens(anatomy.shapes[n], anatomy.shapes[node]) for n in others):
                return str(node.name)
    return ""


def _counts_tokens(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Return whether a constant operand has one row per token (second dimension from the end)."""
    return len(shape) >= 2 and shape[-2] > 1 and shape[-2] == result[-2]
