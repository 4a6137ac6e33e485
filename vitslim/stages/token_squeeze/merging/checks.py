"""Checks that the methods which merge tokens share."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.sketch import ModelSketch
from vitslim.recipe.stages import Merging
from vitslim.stages.token_squeeze.counts import block_problems, support_problems


def chosen_blocks(config: Merging, sketch: ModelSketch) -> list[str]:
    """Return the names of the blocks that merge tokens, in graph order."""
    return [sketch.blocks[index] for index in sorted(_positions(config, sketch)) if index < len(sketch.blocks)]


def model_problems(config: Merging, sketch: ModelSketch) -> list[Problem]:
    """Return the reasons that tokens cannot be merged in the blocks of a model."""
    problems = support_problems(sketch)
    problems = problems or block_problems(sketch, _positions(config, sketch), config.proportional_attention)
    if problems or not sketch.squeezed:
        return problems
    places = {name: place for place, name in enumerate(sketch.blocks)}
    last = max(sketch.squeezed, key=places.__getitem__)
    early = [name for name in chosen_blocks(config, sketch) if places[name] < places[last]]
    if early:
        message = f"'{early[0]}' comes before '{last}', which is already squeezed"
        return [Problem("blocks", message, f"list blocks after '{last}' only, or move this stage before the other")]
    return []


def _positions(config: Merging, sketch: ModelSketch) -> tuple[int, ...]:
    return tuple(range(len(sketch.blocks))) if isinstance(config.blocks, str) else config.blocks
