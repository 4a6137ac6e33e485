"""Layouts that cannot hold the model of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stages import Export
from vitslim.stages.export.layouts import LAYOUTS


def layout_problems(recipe: Recipe, graph: ModelGraph) -> Iterator[Problem]:
    """Yield a problem for each reason that the layout of a recipe cannot hold its dense model."""
    for position, config in enumerate(recipe.stages):
        if isinstance(config, Export):
            for message, hint in LAYOUTS[config.layout].obstacles(graph):
                yield Problem(f"stages.{position}.export.layout", message, hint)
