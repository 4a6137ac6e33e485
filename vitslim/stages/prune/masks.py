"""Putting masks on the weights of a graph, and the checks that every stage which does so shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from vitslim.errors import Problem
from vitslim.graph.edits.records import Mask
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


def with_masks(graph: ModelGraph, pattern: str, masks: Mapping[str, Tensor]) -> ModelGraph:
    """A new graph with these bool masks, by parameter name and of its shape; weights outside them are zero."""
    result = graph.copy()
    weights = result.parameters()
    with torch.no_grad():
        for name, mask in masks.items():
            weights[name].mul_(mask)
    return replace(result, masks={**result.masks, **masks}, edits=(*result.edits, Mask(pattern, tuple(masks))))


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
