"""Token squeezing in a graph: behind the attention residual of some blocks, before their MLP (eTPS)."""

from __future__ import annotations

from collections.abc import Mapping

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import Anatomy, find_anatomy
from vitslim.graph.edits.records import InsertSqueeze
from vitslim.graph.edits.slice import resize_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.squeeze import CLASS_ATTENTION, SQUEEZE_TOKENS
from vitslim.graph.squeezable import squeeze_obstacle


def insert_squeeze(graph: ModelGraph, keep: Mapping[str, int]) -> ModelGraph:
    """A new graph in which each named block keeps so many patch tokens and squeezes the others into them.

    keep: block name to patch tokens that stay, prefix tokens not counted. A block that keeps all it has is left as
    it is. Raises StageError for a model without a class token or with attention that fixes positions, for an unknown
    block, one that is squeezed already, and for a number of tokens that the block does not have.
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
        raise StageError(f"token-squeeze: '{name}' is squeezed already", "squeeze each block once")
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
