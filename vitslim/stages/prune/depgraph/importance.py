"""Importance scores of the indices of an axis (DepGraph, Fang et al., CVPR 2023).

A new importance is one function here, one line of `IMPORTANCES`, and one line of `IMPORTANCES` in
`recipe/stages/prune.py`, which holds the names that a recipe may write and their descriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.data import Batches
from vitslim.graph.axes import Axis
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.stages.prune.depgraph.gradients import Gradients, squared_gradients, summed_gradients
from vitslim.stages.prune.depgraph.groups import ElementScores, axis_scores, find_members, normalized

AxisScores = dict[str, Tensor]
"""Axis name to the score of each index: float64 (axis size,). Larger scores are kept."""


@dataclass(frozen=True)
class ScoreInputs:
    """Everything that an importance may read."""

    graph: ModelGraph
    axes: tuple[Axis, ...]
    """The axes to score."""
    images: Batches
    """Calibration batches; empty for an importance that does not use images."""
    progress: Progress
    generator: torch.Generator
    """Source of random numbers. It continues from one pruning step to the next."""


@dataclass(frozen=True)
class Importance:
    """One way to score the indices of axes."""

    scores: Callable[[ScoreInputs], AxisScores]
    uses_images: bool = False


def by_weight(elements: Callable[[Tensor], Tensor], normalize: Callable[[Tensor], Tensor] = normalized) -> Importance:
    """Return the importance that sums a score of each weight over its group.

    elements: score of each element of a weight, same shape. normalize: brings the scores (axis size,) of one group to
    a scale that is comparable between groups.
    """

    def scores(given: ScoreInputs) -> AxisScores:
        return _group_scores(given, lambda _, weight: elements(weight), normalize)

    return Importance(scores)


def by_gradient(
    elements: Callable[[Tensor, Tensor], Tensor],
    gradients: Callable[[ModelGraph, Batches, Progress, torch.Generator], Gradients],
) -> Importance:
    """Return the importance that sums a score of each weight and its gradient statistic over its group.

    elements: score of each element from a weight and its statistic, all of one shape. gradients: computes the statistic
    on the calibration images; parameters without one count as zero.
    """

    def scores(given: ScoreInputs) -> AxisScores:
        found = gradients(given.graph, given.images, given.progress, given.generator)
        return _group_scores(
            given, lambda name, weight: elements(weight, found.get(name, torch.zeros_like(weight))), normalized
        )

    return Importance(scores, uses_images=True)


def _group_scores(given: ScoreInputs, elements: ElementScores, normalize: Callable[[Tensor], Tensor]) -> AxisScores:
    parameters = given.graph.parameters()
    scores = axis_scores(find_members(given.axes, parameters), parameters, elements)
    return {axis: normalize(found) for axis, found in scores.items()}


def magnitude_l1(weight: Tensor) -> Tensor:
    """Return `|w|` of each element. Any shape."""
    return weight.detach().abs()


def magnitude_l2(weight: Tensor) -> Tensor:
    """Return `w^2` of each element. Any shape."""
    return weight.detach().square()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the first-order change of the loss when an element is removed: `|w * g|`. Any shape; float64.

    Double precision, because the product of small gradients and weights can underflow.
    """
    return (weight.detach().double() * gradient.detach().double()).abs()


def hessian(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """Return the second-order change of the loss when an element is removed: `w^2 * mean(g^2)`. Any shape; float64.

    squared_gradient: mean over images of the squared gradient of each image's loss, an approximation of the diagonal of
    the Hessian (Optimal Brain Damage, LeCun et al., 1989).
    """
    return weight.detach().double().square() * squared_gradient.detach().double()


def lamp(scores: Tensor) -> Tensor:
    """Return each score divided by the sum of all scores that are not smaller. (size,) in and out.

    Layer-adaptive magnitude pruning (LAMP, Lee et al., ICLR 2021), applied to the squared magnitudes of a group.
    Results lie in (0, 1]; the largest score gives 1. Of equal scores the later one counts as larger. Zeros stay zeros
    when all scores are zero.
    """
    ordered, order = torch.sort(scores, stable=True)
    not_smaller = ordered.flip(0).cumsum(0).flip(0)
    result = torch.zeros_like(scores)
    result[order] = torch.where(not_smaller > 0, ordered / not_smaller.clamp(min=torch.finfo(scores.dtype).tiny), 0.0)
    return result


def random_scores(given: ScoreInputs) -> AxisScores:
    """Return uniform random scores in [0, 1)."""
    return {axis.name: torch.rand(axis.size, generator=given.generator, dtype=torch.float64) for axis in given.axes}


IMPORTANCES = {
    "magnitude_l1": by_weight(magnitude_l1),
    "magnitude_l2": by_weight(magnitude_l2),
    "taylor": by_gradient(taylor, summed_gradients),
    "hessian": by_gradient(hessian, squared_gradients),
    "lamp": by_weight(magnitude_l2, lamp),
    "random": Importance(random_scores),
}
"""Importance by the name that a recipe writes."""
