"""Checks that all stages which mask weights share."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch


def unmasked_float(sketch: ModelSketch, method: str) -> list[Problem]:
    """A mask is chosen once, on a float model."""
    if sketch.sparsity:
        message = f"the model has {next(iter(sketch.sparsity.values()))} weights already: a mask is chosen once"
        return [Problem("", message, "leave one stage that masks weights")]
    if sketch.bits:
        return [Problem("", f"{method} cannot follow quantization", f"put {method} before quantize")]
    return []


def leaks(graph: ModelGraph, names: list[str]) -> list[Problem]:
    """Layers of these names that have no mask, or weights outside it."""
    weights = graph.parameters()
    problems = []
    for name in names:
        mask = graph.masks.get(name)
        if mask is None:
            problems.append(Problem(name, "has no mask"))
        elif weights[name].detach()[~mask].any():
            problems.append(Problem(name, "has weights outside its mask"))
    return problems
