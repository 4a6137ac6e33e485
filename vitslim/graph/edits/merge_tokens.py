"""Token merging in a graph: after the attention residual of some blocks, before their MLP (ToMe, DiffRate)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import Anatomy, Attention, ancestors, find_anatomy
from vitslim.graph.anatomy.token_sizes import merged_sizes, size_conflict, sizes_are_read_after, weighed_blocks
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.insert_squeeze import insert_score, squeezable_blocks
from vitslim.graph.edits.shorten_tokens import require_tokens, shorten_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op
from vitslim.graph.ops.merge import (
    ALTERNATE_SIZES,
    MATCH_ALTERNATE,
    MATCH_RANKED,
    MERGE_ALTERNATE,
    MERGE_RANKED,
    RANKED_SIZES,
    SIZE_BIAS,
    UNIT_SIZES,
)
from vitslim.graph.ops.squeeze import KEEP_TOKENS
from vitslim.graph.ops.token_scores import CLASS_ATTENTION, RECEIVED_ATTENTION

aten = torch.ops.aten


class KeptTokens(NamedTuple):
    """Patch tokens that one block leaves, without prefix tokens."""

    survivors: int
    """After the least important tokens are dropped; ToMe drops none."""
    keep: int
    """After others are merged into the most similar tokens that stay."""


@dataclass(frozen=True)
class MergeTokens(Edit):
    """Tokens are merged in these blocks, after the attention residual."""

    method: str
    """`tome` or `diffrate`."""
    counts: dict[str, KeptTokens]
    """Block name (`blocks.3`) to its counts."""
    proportional: bool
    """Whether later attentions weigh keys by the sizes of tokens."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert the operators again."""
        return merge_tokens(graph, self.method, self.counts, self.proportional)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MergeTokens:
        """Rebuild the edit."""
        counts = {block: KeptTokens(*count) for block, count in fields["counts"].items()}
        return cls(str(fields["method"]), counts, bool(fields["proportional"]))


def merge_tokens(
    graph: ModelGraph, method: str, counts: Mapping[str, KeptTokens], proportional: bool = True
) -> ModelGraph:
    """Return a new graph in which each named block merges tokens.

    method: `tome` merges pairs of tokens with similar keys; `diffrate` drops the tokens with the lowest attention
    scores and merges the next ones into the most similar of the rest. counts: block name to the numbers of patch tokens
    that are left; a block that keeps all is not changed. proportional: later attentions count each key as often as its
    size, the number of tokens merged into it. Raises StageError for a model whose tokens cannot be squeezed, for an
    unknown block, for one that is squeezed already or comes before one that merges, and for counts that the block does
    not have.
    """
    new = graph.copy()
    names = squeezable_blocks(new, counts)
    anatomy = find_anatomy(new)
    _require_sizes(anatomy, dict.fromkeys(names, proportional))
    first = next((place for place, block in enumerate(anatomy.blocks) if block.name in counts), len(anatomy.blocks))
    had_bias = _forget_sizes(new, first)
    done = {name: counts[name] for name in names if _insert(new, name, method, counts[name])}
    if had_bias or (done and proportional):
        _weigh_keys(new, first)
    if not done:
        return new
    new.edits = (*new.edits, MergeTokens(method, done, proportional))
    return new


def _require_sizes(anatomy: Anatomy, merged: Mapping[str, bool]) -> None:
    """Raise StageError if another squeeze would lose the sizes of tokens that these blocks merge."""
    known = weighed_blocks(anatomy)
    others = {block.name for block in anatomy.blocks if block.squeeze is not None} - known.keys()
    conflict = size_conflict([block.name for block in anatomy.blocks], {**known, **merged}, others - merged.keys())
    if conflict:
        raise StageError(f"token-squeeze: {sizes_are_read_after(conflict)}", "merge tokens after all other squeezing")


def _insert(graph: ModelGraph, name: str, method: str, count: KeptTokens) -> bool:
    """Insert into one block; False when it keeps all its tokens."""
    anatomy = find_anatomy(graph)
    names = [block.name for block in anatomy.blocks]
    place = names.index(name)
    block, later = anatomy.blocks[place], anatomy.blocks[place + 1 :]
    patches = require_tokens(anatomy, block, count.keep)
    if any(merged_sizes(other) is not None for other in later):
        raise StageError(
            f"token-squeeze: a block after '{name}' already merges tokens", "merge in earlier blocks first"
        )
    if not count.keep <= count.survivors <= patches or (method == "tome" and count.survivors < patches):
        raise StageError(f"token-squeeze: '{name}' cannot keep {count.survivors} of {patches} patch tokens")
    if method == "tome" and patches - count.keep > patches // 2:
        raise StageError(f"token-squeeze: '{name}' cannot merge {patches - count.keep} of {patches} patch tokens")
    attention, residual = block.attention, block.attention_residual
    if count.keep == patches or attention is None or residual is None:  # the last two: `require_tokens` refused them
        return False
    sizes = next((found for other in reversed(anatomy.blocks[:place]) if (found := merged_sizes(other))), None)
    builder = _Builder(anatomy, attention, sizes, count)
    build = builder.tome if method == "tome" else builder.diffrate
    shorten_tokens(graph, residual, anatomy.prefix_tokens + count.keep, build)
    return True


@dataclass(frozen=True)
class _Builder:
    """Builds the nodes of one block."""

    anatomy: Anatomy
    attention: Attention
    sizes: Node | None
    """Sizes of the tokens before; None if no earlier block merges."""
    count: KeptTokens

    def tome(self, nodes: Graph, x: Node) -> Node:
        """Insert the operators of ToMe and return the merged tokens."""
        prefix, keep = self.anatomy.prefix_tokens, self.count.keep
        match = nodes.call_function(MATCH_ALTERNATE, (self.attention.k, prefix, keep))
        sizes = self.sizes or nodes.call_function(UNIT_SIZES, (x,))
        merged = nodes.call_function(ALTERNATE_SIZES, (sizes, match, prefix, keep))
        return nodes.call_function(MERGE_ALTERNATE, (x, match, sizes, merged, prefix))

    def diffrate(self, nodes: Graph, x: Node) -> Node:
        """Insert the operators of DiffRate and return the merged tokens; without sizes so far, only dropped ones."""
        prefix, (survivors, keep) = self.anatomy.prefix_tokens, self.count
        score = insert_score(nodes, self.attention, self.anatomy)
        if self.sizes is None and keep == survivors:
            return nodes.call_function(KEEP_TOKENS, (x, score, keep))
        match = nodes.call_function(MATCH_RANKED, (x, score, survivors, keep))
        sizes = self.sizes or nodes.call_function(UNIT_SIZES, (x,))
        merged = nodes.call_function(RANKED_SIZES, (sizes, match, prefix, keep))
        return nodes.call_function(MERGE_RANKED, (x, match, sizes, merged, prefix))


def _weigh_keys(graph: ModelGraph, first: int) -> None:
    """In place: attentions after block number `first` add the logarithm of the sizes to the logits of the keys."""
    nodes = graph.module.graph
    sizes: Node | None = None
    for place, block in enumerate(find_anatomy(graph).blocks):
        if sizes is not None and place > first and block.attention is not None:
            bias = next((user for user in sizes.users if is_op(user, SIZE_BIAS)), None)
            if bias is None:
                with nodes.inserting_after(sizes):
                    bias = nodes.call_function(SIZE_BIAS, (sizes,))
            _set_bias(nodes, block.attention, bias)
        sizes = merged_sizes(block) or sizes
    _finish(graph)


def _forget_sizes(graph: ModelGraph, first: int) -> bool:
    """In place: attentions after block number `first` no longer read sizes. Return whether one of them did."""
    found = [block.attention for block in find_anatomy(graph).blocks[first + 1 :] if block.attention]
    weighed = [attention for attention in found if attention.size_bias is not None]
    for attention in weighed:
        _set_bias(graph.module.graph, attention, None)
    graph.module.graph.eliminate_dead_code()
    _finish(graph)
    return bool(weighed)


def _set_bias(nodes: Graph, attention: Attention, bias: Node | None) -> None:
    """Set the size bias of an attention, and of the operators that score tokens by it."""
    for user in list(attention.q.users):
        if is_op(user, CLASS_ATTENTION, RECEIVED_ATTENTION):
            user.args = (*user.args[:4], bias)
    if has_trait(attention.node, Trait.ATTENTION):
        attention.node.args = (*attention.node.args[:3], bias, *attention.node.args[4:])
        return
    softmax = next(node for node in ancestors(attention.node) if has_trait(node, Trait.SOFTMAX))
    if attention.size_bias is not None:
        added = next(user for user in attention.size_bias.users if user in (softmax, *ancestors(softmax)))
        added.replace_all_uses_with(argument(added, 0))
    if bias is not None:
        with nodes.inserting_before(softmax):
            weighed = nodes.call_function(aten.add.Tensor, (argument(softmax, 0), bias))
        softmax.update_arg(0, weighed)


def _finish(graph: ModelGraph) -> None:
    graph.module.graph.lint()
    graph.module.recompile()
    graph.forget_axes()
