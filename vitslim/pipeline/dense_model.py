"""The dense model of a recipe, with the preprocessing of its images."""

from __future__ import annotations

from dataclasses import replace

from vitslim.data.digits import MEAN, STD
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace.revit import trace_model
from vitslim.recipe import resolve_checkpoint
from vitslim.recipe.schema import Recipe


def trace_dense(recipe: Recipe) -> ModelGraph:
    """Return the graph of the dense model; see `trace_model`.

    The digits are normalized by their own mean and standard deviation, which become those of the model.
    """
    graph = trace_model(recipe.model, resolve_checkpoint(recipe), recipe.seed)
    if recipe.data.kind == "digits":
        channels = graph.source.image[0]
        own = replace(graph.source.preprocessing, mean=(MEAN,) * channels, std=(STD,) * channels)
        graph.source = replace(graph.source, preprocessing=own)
    return graph
