"""Checks that all stages with masks share."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitslim.errors import Problem
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch


def masked_or_quantized(sketch: ModelSketch, method: str) -> list[Problem]:
    """Return a problem for a model that already has masks, or is quantized."""
    if sketch.sparsity:
        message = f"the model already has {next(iter(sketch.sparsity.values()))} weights, and a model has one mask"
        return [Problem("", message, "keep one stage that masks weights")]
    if sketch.bits:
        return [Problem("", f"{method} must come before quantize", f"move `{method}` before `quantize`")]
    return []


def mask_violations(graph: ModelGraph, names: list[str]) -> list[Problem]:
    """Return a problem for each named weight that has no mask, or nonzero elements outside it."""
    weights = graph.parameters()
    problems = []
    for name in names:
        mask = graph.masks.get(name)
        if mask is None:
            problems.append(Problem(name, "has no mask"))
        elif weights[name].detach()[~mask].any():
            problems.append(Problem(name, "has nonzero weights outside its mask"))
    return problems


def magnitude_inside(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> float:
    """Return the fraction of the magnitude of all masked weights that lies inside their masks; 1 for zero weights.

    weights, masks: by parameter name, of one shape; masks are bool. Sums in float64.
    """
    kept = total = 0.0
    for name, mask in masks.items():
        magnitude = weights[name].detach().abs().double()
        kept, total = kept + float((magnitude * mask).sum()), total + float(magnitude.sum())
    return kept / total if total else 1.0
