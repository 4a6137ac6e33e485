"""Resolve `reduce_range: auto` of a recipe, once, before anything depends on it."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from vitslim.backends.environment import cpu_flags
from vitslim.backends.reduce_range import reduce_range_for
from vitslim.recipe.backend_names import SIM, backend_name
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Quantize
from vitslim.results import RESOLVED_KEY, LayerNote


def resolve_reduce_range(recipe: Recipe) -> tuple[Recipe, Mapping[int, LayerNote]]:
    """Return the recipe with `auto` replaced by true or false, and a note for the report by position of the stage.

    The processors of the measured backends decide. Stages whose weights `reduce_range` does not affect stay unchanged.
    """
    names = [name for name in map(backend_name, recipe.report.backends) if not name.startswith(SIM)]
    found = reduce_range_for(names, cpu_flags(), platform.machine())
    stages, notes = list(recipe.stages), dict[int, LayerNote]()
    for position, config in enumerate(stages):
        if not isinstance(config, Quantize) or not config.uses_reduce_range:
            continue
        value, reason = found.value, found.reason
        if config.reduce_range == "auto":
            stages[position] = config.model_copy(update={"reduce_range": value})
        else:
            value, reason = config.reduce_range, "set in the recipe"
        notes[position] = LayerNote(layer=RESOLVED_KEY, result=f"reduce_range = {str(value).lower()}", reason=reason)
    return recipe.model_copy(update={"stages": tuple(stages)}), notes
