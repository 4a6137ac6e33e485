"""Scores that choose an N:M mask, each with the weights within it.

A new score is one function here, one line of `SCORES`, and one line of `SCORES` in `recipe/stages/prune.py`, which
holds the names that a recipe may write and their descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.sparsity import Pattern
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four.patterns import pattern_mask
from vitslim.stages.reconstruction.alps import alps_mask
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layerwise import LayerSolver, solvable_images
from vitslim.stages.reconstruction.refit import refit, refit_rows
from vitslim.stages.reconstruction.sparsegpt import sparsegpt_mask, wanda_scores

BATCH = 32
GRADIENTS_MIN = 1024
"""Smallest number of sampled gradients for the curvature of outputs; with few images, several answers are sampled for
each."""

Masks = dict[str, Tensor]
"""Parameter name to its mask: bool, the parameter's shape."""

Solver = Callable[[Tensor, Curvature, Pattern], tuple[Tensor, Tensor]]
"""Mask, bool (out, in), and weights within it, (out, in), from a weight (out, in) and the cost of a change."""


@dataclass(frozen=True)
class MaskInputs:
    """Everything that a score may read."""

    graph: ModelGraph
    weights: Sequence[str]
    """Names of the weights to mask."""
    pattern: Pattern
    context: StageContext


Score = Callable[[MaskInputs], tuple[Masks, ModelGraph]]
"""Masks, and the graph with the weights within them."""


def magnitude(given: MaskInputs) -> tuple[Masks, ModelGraph]:
    """Keep the largest magnitudes; the weights stay as they are."""
    return magnitude_masks(given.graph, given.weights, given.pattern), given.graph


def magnitude_masks(graph: ModelGraph, weights: Sequence[str], pattern: Pattern) -> Masks:
    """Return the masks that keep the largest magnitudes."""
    found = {name: graph.parameters()[name].detach() for name in weights}
    return {
        name: pattern_mask(weight.abs().flatten(start_dim=1), pattern).view(weight.shape)
        for name, weight in found.items()
    }


def by_layer(solve: Solver, name: str, joint: bool = False) -> Score:
    """Return the score that solves one layer after the other on the calibration images.

    joint: whether the solver uses the curvature of the outputs too (K-FAC). Raises StageError for grouped convolutions.
    """
    return partial(_solve_layers, solve=solve, name=name, joint=joint)


def _solve_layers(given: MaskInputs, *, solve: Solver, name: str, joint: bool) -> tuple[Masks, ModelGraph]:
    graph, context = given.graph, given.context
    refuse_grouped_convolutions(graph, given.weights, name)
    masks: Masks = {}

    def solve_one(weight: str, matrix: Tensor, curvature: Curvature) -> Tensor:
        mask, result = solve(matrix, curvature, given.pattern)
        masks[weight] = mask.view(graph.parameters()[weight].shape)
        return result

    calibration = context.data.calibration
    calibration = calibration.balanced(solvable_images(graph, given.weights, len(calibration)))
    images = torch.cat([batch for batch, _ in calibration.batches(BATCH)])
    # The probability of a single class is always 1, so its gradient is zero.
    draws = math.ceil(GRADIENTS_MIN / len(images)) if joint and graph.source.classes != 1 else 0
    solver = LayerSolver(
        images, context.progress, f"two-four: {name}", joint=given.weights if joint else (), draws=draws
    )
    solved = solver(graph, given.weights, solve_one)
    return masks, solved


def refuse_grouped_convolutions(graph: ModelGraph, weights: Sequence[str], score: str) -> None:
    """Raise StageError for a grouped convolution, whose outputs do not share one gram matrix of inputs."""
    groups = {weight: argument(nodes[0], 6, "groups", 1) for weight, nodes in layer_nodes(graph.module).items()}
    if grouped := [weight for weight in weights if groups[weight] != 1]:
        message = f"`score: {score}` does not support grouped convolutions, got {grouped[0]}"
        raise StageError(message, "use `score: magnitude`, or name other layers in `layers`")


def wanda(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Keep the largest Wanda scores; the weights stay as they are (Sun et al., ICLR 2024)."""
    mask = pattern_mask(wanda_scores(weight, curvature), pattern)
    return mask, weight * mask


def sparsegpt(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Choose the mask by SparseGPT (Frantar and Alistarh, ICML 2023) and refit every row."""
    mask = sparsegpt_mask(weight, curvature, partial(pattern_mask, pattern=pattern), pattern.span)
    return mask, refit_rows(weight, mask, curvature)


def kfac(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Choose the cheaper of the masks by ALPS and by SparseGPT, and refit all rows jointly.

    ALPS is cheaper except when input channels hardly differ, as those of neighboring pixels.
    """
    choose = partial(pattern_mask, pattern=pattern)
    masks = [alps_mask(weight, curvature, choose), sparsegpt_mask(weight, curvature, choose, pattern.span)]
    best = min(masks, key=lambda mask: curvature.cost(weight - refit_rows(weight, mask, curvature)))
    return best, refit(weight, best, curvature)


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "wanda": by_layer(wanda, "wanda"),
    "sparsegpt": by_layer(sparsegpt, "sparsegpt"),
    "kfac": by_layer(kfac, "kfac", joint=True),
}
"""Score by the name that a recipe writes."""
