"""Token squeezing by attention scores: after the attention residual of some blocks, before their MLP."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch.fx import Graph, Node

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import Anatomy, Attention, find_anatomy, squeeze_obstacle
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.shorten_tokens import require_tokens, shorten_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.squeeze import FUSE_INATTENTIVE, KEEP_TOKENS, SQUEEZE_TOKENS
from vitslim.graph.ops.token_scores import CLASS_ATTENTION, RECEIVED_ATTENTION

OPERATORS: Mapping[str, Any] = MappingProxyType(
    {"etps": SQUEEZE_TOKENS, "evit": FUSE_INATTENTIVE, "prune-only": KEEP_TOKENS}
)
"""Method to the operator that takes tokens, scores and the number of kept tokens."""

FUSED_TOKENS: Mapping[str, int] = MappingProxyType({"evit": 1})
"""Method to the number of tokens that it adds to the kept ones; 0 for others."""


@dataclass(frozen=True)
class InsertSqueeze(Edit):
    """Tokens are squeezed in these blocks, after the attention residual."""

    method: str
    keep: dict[str, int]
    """Block name (`blocks.3`) to the number of patch tokens kept there, without prefix tokens and fused tokens."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert the operators again."""
        return insert_squeeze(graph, self.keep, self.method)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InsertSqueeze:
        """Rebuild the edit."""
        return cls(str(fields["method"]), dict(fields["keep"]))


def insert_squeeze(graph: ModelGraph, keep: Mapping[str, int], method: str = "etps") -> ModelGraph:
    """Return a new graph in which each named block keeps the patch tokens with the highest attention scores.

    keep: block name to the number of kept patch tokens, without prefix tokens. A block that keeps all its tokens is
    not changed. method: a key of OPERATORS. The score is the attention of the class token, or the attention that a
    token receives in models without one. Raises StageError for a model whose tokens cannot be squeezed, for an unknown
    block, for one that is squeezed already, and for a number of tokens that the block does not have.
    """
    new = graph.copy()
    names = squeezable_blocks(new, keep)
    done = {name: keep[name] for name in names if _insert(new, name, keep[name], method)}
    if done:
        new.edits = (*new.edits, InsertSqueeze(method, done))
    return new


def squeezable_blocks(graph: ModelGraph, requested: Collection[str]) -> list[str]:
    """Return the requested names of blocks in graph order.

    Raises StageError if tokens of the model cannot be squeezed, and for a name that no block has.
    """
    anatomy = find_anatomy(graph)
    obstacle = squeeze_obstacle(anatomy)
    if obstacle:
        raise StageError(f"token-squeeze cannot run on '{graph.source.timm}': {obstacle}", "leave the stage out")
    names = [block.name for block in anatomy.blocks]
    for name in requested:
        if name not in names:
            raise StageError(f"token-squeeze: the model has no block '{name}'", closest(name, names))
    return [name for name in names if name in requested]


def insert_score(nodes: Graph, attention: Attention, anatomy: Anatomy) -> Node:
    """Insert the score of each patch token at the insertion point, and return its node: (batch, patches)."""
    operator = CLASS_ATTENTION if anatomy.has_class_token else RECEIVED_ATTENTION
    return nodes.call_function(operator, (attention.q, attention.k, attention.scale, anatomy.prefix_tokens))


def _insert(graph: ModelGraph, name: str, keep: int, method: str) -> bool:
    """Insert into one block; False when it keeps all its tokens."""
    anatomy = find_anatomy(graph)
    block = next(block for block in anatomy.blocks if block.name == name)
    fused = FUSED_TOKENS.get(method, 0)
    patches = require_tokens(anatomy, block, keep, fused)
    attention, residual = block.attention, block.attention_residual
    if keep == patches or attention is None or residual is None:  # the last two: `require_tokens` has refused them
        return False

    def build(nodes: Graph, source: Node) -> Node:
        return nodes.call_function(OPERATORS[method], (source, insert_score(nodes, attention, anatomy), keep))

    shorten_tokens(graph, residual, anatomy.prefix_tokens + keep + fused, build)
    return True
