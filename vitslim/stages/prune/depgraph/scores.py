"""Scores of the indices of axes by the method that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitslim.graph.axes import Axis
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.stages import DepGraph
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.depgraph.gradients import calibration_batches, squared_gradients, summed_gradients
from vitslim.stages.prune.depgraph.groups import ElementScores, axis_scores, find_members
from vitslim.stages.prune.depgraph.importance import hessian, lamp, magnitude_l1, magnitude_l2, normalized, taylor


class Scorer:
    """Scores one graph after another, as the cut proceeds. Equal seeds give equal scores."""

    def __init__(self, config: DepGraph, context: StageContext) -> None:
        self.config, self.context = config, context
        self.metrics: dict[str, float] = {}
        """`calibration_images`: how many images the gradients are of, where the method asks for gradients."""
        self._chance = torch.Generator().manual_seed(context.seed)

    def scores(self, graph: ModelGraph, axes: Iterable[Axis]) -> dict[str, Tensor]:
        """Score of each index by axis name, float64 (axis size,): the larger, the more it matters.

        Raises StageError where gradients are needed and there are no images, or they are no finite numbers.
        """
        config, axes = self.config, list(axes)
        if config.importance == "random":
            return {axis.name: torch.rand(axis.size, generator=self._chance, dtype=torch.float64) for axis in axes}
        parameters = graph.parameters()
        members = find_members(axes, parameters)
        scores = axis_scores(members, parameters, self._elements(graph))
        if config.importance == "lamp":
            return {axis: lamp(found) for axis, found in scores.items()}
        return {axis: normalized(found) for axis, found in scores.items()}

    def _elements(self, graph: ModelGraph) -> ElementScores:
        config, context = self.config, self.context
        if config.importance == "magnitude_l1":
            return lambda _, weight: magnitude_l1(weight)
        if config.importance in ("magnitude_l2", "lamp"):
            return lambda _, weight: magnitude_l2(weight)
        images = calibration_batches(context.data.calibration, config.batches, config.batch, context.seed)
        self.metrics["calibration_images"] = float(sum(len(positions) for positions in images.positions))
        by_gradient, combine = (
            (summed_gradients, taylor) if config.importance == "taylor" else (squared_gradients, hessian)
        )
        gradients = by_gradient(graph, images, context.progress)
        return lambda name, weight: combine(weight, gradients.get(name, torch.zeros_like(weight)))
