"""Checks that the methods which merge tokens share."""

from __future__ import annotations

from collections.abc import Mapping

from vitslim.errors import Problem
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits.merge_tokens import KeptTokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Merging
from vitslim.stages.token_squeeze.counts import block_problems


def chosen_blocks(config: Merging, sketch: ModelSketch) -> list[str]:
    """Return the names of the blocks that merge tokens, in graph order."""
    return [sketch.blocks[index] for index in sorted(_positions(config, sketch)) if index < len(sketch.blocks)]


def model_problems(config: Merging, sketch: ModelSketch) -> list[Problem]:
    """Return the reasons that tokens cannot be merged in the blocks of a model."""
    if sketch.squeeze_obstacle:
        message = f"token-squeeze does not support this model: {sketch.squeeze_obstacle}"
        return [Problem("method", message, "remove the stage, or use a plain ViT or DeiT")]
    problems = block_problems(sketch, _positions(config, sketch), config.proportional_attention)
    if problems or not sketch.squeezed:
        return problems
    places = {name: place for place, name in enumerate(sketch.blocks)}
    last = max(sketch.squeezed, key=places.__getitem__)
    early = [name for name in chosen_blocks(config, sketch) if places[name] < places[last]]
    if early:
        message = f"'{early[0]}' comes before '{last}', which is already squeezed"
        return [Problem("blocks", message, f"list blocks after '{last}' only, or move this stage before the other")]
    return []


def result_problems(after: ModelGraph, counts: Mapping[str, KeptTokens]) -> list[Problem]:
    """Return a problem for each block of a graph that does not keep its number of patch tokens."""
    anatomy = find_anatomy(after)
    problems = []
    for name, count in counts.items():
        block = anatomy.block(name)
        if block is None or block.squeeze is None:
            problems.append(Problem("blocks", f"'{name}' was not squeezed"))
        elif anatomy.shapes[block.squeeze][1] != count.keep + anatomy.prefix_tokens:
            problems.append(Problem("blocks", f"'{name}' does not keep {count.keep} patch tokens"))
    return problems


def _positions(config: Merging, sketch: ModelSketch) -> tuple[int, ...]:
    return tuple(range(len(sketch.blocks))) if isinstance(config.blocks, str) else config.blocks
