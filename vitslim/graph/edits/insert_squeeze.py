"""Token squeezing in a graph: after the attention residual of some blocks, before their MLP (eTPS)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import Anatomy, find_anatomy, squeeze_obstacle
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.slice import resize_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.squeeze import CLASS_ATTENTION, SQUEEZE_TOKENS


@dataclass(frozen=True)
class InsertSqueeze(Edit):
    """Tokens are squeezed in these blocks, after the attention residual (eTPS)."""

    keep: dict[str, int]
    """Block name (`blocks.3`) to the number of patch tokens kept there, without the class token."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert the operators again."""
        return insert_squeeze(graph, self.keep)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InsertSqueeze:
        """Rebuild the edit."""
        return cls(dict(fields["keep"]))


def insert_squeeze(graph: ModelGraph, keep: Mapping[str, int]) -> ModelGraph:
    """Return a new graph in which each named block keeps a number of patch tokens and squeezes the others into them.

    keep: block name to the number of kept patch tokens, without prefix tokens. A block that keeps all its tokens is
    not changed. Raises StageError for a model without a class token or with attention that depends on positions, for
    an unknown block, for one that is squeezed already, and for a number of tokens that the block does not have.
    """
    new = graph.copy()
    anatomy = find_anatomy(new)
    obstacle = squeeze_obstacle(anatomy)
    if obstacle:
        raise StageError(f"token-squeeze cannot run on '{graph.source.timm}': {obstacle}", "leave the stage out")
    names = [block.name for block in anatomy.blocks]
    for name in keep:
        if name not in names:
            raise StageError(f"token-squeeze: the model has no block '{name}'", closest(name, names))
    done = {}
    for name in (n for n in names if n in keep):
        if _insert(new, find_anatomy(new), name, keep[name]):
            done[name] = keep[name]
    if done:
        new.edits = (*new.edits, InsertSqueeze(done))
    return new


def _insert(graph: ModelGraph, anatomy: Anatomy, name: str, keep: int) -> bool:
    """Insert into one block; False when it keeps all its tokens."""
    block = next(block for block in anatomy.blocks if block.name == name)
    residual, attention = block.attention_residual, block.attention
    if residual is None or attention is None:
        raise StageError(f"token-squeeze: '{name}' has no attention with a residual", "name another block")
    if block.squeeze is not None:
        raise StageError(f"token-squeeze: '{name}' is already squeezed", "squeeze each block once")
    patches = anatomy.shapes[residual][1] - anatomy.prefix_tokens
    later = _fewest_needed_later(anatomy, name)
    if not max(1, later) <= keep <= patches:
        needed = f", and a later block keeps {later}" if later else ""
        raise StageError(f"token-squeeze: '{name}' cannot keep {keep} of {patches} patch tokens{needed}")
    if keep == patches:
        return False
    users = list(residual.users)
    resize_tokens(graph, residual, anatomy.prefix_tokens + keep)
    nodes = graph.module.graph
    with nodes.inserting_after(residual):
        score = nodes.call_function(CLASS_ATTENTION, (attention.q, attention.k, attention.scale, anatomy.prefix_tokens))
    with nodes.inserting_after(score):
        squeezed = nodes.call_function(SQUEEZE_TOKENS, (residual, score, keep))
    for user in users:
        user.replace_input_with(residual, squeezed)
    graph.module.recompile()
    graph.forget_axes()
    return True


def _fewest_needed_later(anatomy: Anatomy, name: str) -> int:
    names = [block.name for block in anatomy.blocks]
    later = anatomy.blocks[names.index(name) + 1 :]
    return max((int(str(block.squeeze.args[2])) for block in later if block.squeeze), default=0)
