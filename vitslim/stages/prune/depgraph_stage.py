"""Structural pruning: cut the least important indices of every prunable axis (DepGraph, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite

import torch
from torch import Tensor

from vitslim.errors import Problem, StageError
from vitslim.graph.axes import Axis, Site
from vitslim.graph.edit import slice_axes
from vitslim.graph.edits import Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.graph.sketch_graph import sketch
from vitslim.graph.verify import verify_axes
from vitslim.recipe.stages import DepGraph
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.cuts import choose_cuts
from vitslim.stages.prune.gradients import calibration_gradients
from vitslim.stages.prune.importance import group_scores, magnitude_l2, member_scores, slice_sums, taylor
from vitslim.stages.prune.select import kept_indices

MAX_VERIFY_ERROR = 1e-4
"""How much the outputs may move, relative to their size, when every prunable axis is permuted; more is a wrong axis."""


class DepGraphStage:
    """Carries out `prune: {method: depgraph}`."""

    def __init__(self, config: DepGraph) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A float model without 2:4 weights that has something to cut."""
        if sketch.bits:
            return [Problem("", "structural pruning cannot follow quantisation", "put prune before quantize")]
        if sketch.sparsity:
            return [Problem("", "structural pruning would break the 2:4 pattern", "put depgraph before two-four")]
        cuts = choose_cuts(sketch, self.config)
        if cuts.keep:
            return []
        reasons = sorted({note.reason for note in cuts.skipped}) or ["no axis of this model can be cut"]
        where = "" if self.config.ratio else "ratio"
        return [Problem(where, f"nothing can be pruned: {'; '.join(reasons[:3])}", "raise ratio or lower round_to")]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Exact: lengths depend on the configuration alone, only which indices go depends on weights and data."""
        return sketch.with_sizes(choose_cuts(sketch, self.config).keep)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Check the axes by permutation, score every index, cut. Raises StageError when there is nothing to cut."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        cuts = choose_cuts(before, self.config)
        error = _verified(graph)
        element_scores, metrics = self._element_scores(graph, context)
        scores = axis_scores([graph.axes[name] for name in cuts.keep], graph.parameters(), element_scores)
        kept = {name: kept_indices(scores[name], count) for name, count in cuts.keep.items() if name in scores}
        if not kept:
            raise StageError("nothing can be pruned: no axis of this model occurs in a weight")
        notes = tuple(LayerNote(layer=n, what=f"kept {len(k)} of {graph.axes[n].size}") for n, k in kept.items())
        unscored = tuple(
            LayerNote(layer=name, what="skipped", reason="occurs in no weight, so it cannot be scored")
            for name in cuts.keep.keys() - kept.keys()
        )
        metrics = {"axes_cut": float(len(kept)), "verify_error": error, **metrics}
        return StageResult(slice_axes(graph, kept), notes, cuts.skipped + unscored, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every axis that was cut has the promised length."""
        edit = after.edits[-1] if len(after.edits) > len(before.edits) else None
        if not isinstance(edit, Slice):
            return [Problem("", "no axis was cut")]
        promised = choose_cuts(sketch(before), self.config).keep
        lengths = {axis.name: axis.size for axis in after.axes.axes}
        return [
            Problem(name, f"has {lengths.get(name, 0)} indices instead of {promised.get(name)}")
            for name in edit.kept
            if lengths.get(name) != promised.get(name)
        ]

    def _element_scores(
        self, graph: ModelGraph, context: StageContext
    ) -> tuple[Callable[[str, Tensor], Tensor], dict[str, float]]:
        """How one element of a parameter scores, and figures for the report."""
        if self.config.importance == "magnitude_l2":
            return lambda _, weight: magnitude_l2(weight), {}
        gradients, images = calibration_gradients(
            graph, context.data.calibration, self.config.batches, self.config.batch, context.seed, context.progress
        )
        return (
            lambda name, weight: taylor(weight, gradients.get(name, torch.zeros_like(weight))),
            {"calibration_images": float(images)},
        )


def axis_scores(
    axes: list[Axis], parameters: Mapping[str, Tensor], element_scores: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Score of each index by axis name, float64 (axis size,), mean 1; axes that occur in no weight are left out.

    Members of a group are the weights of linears, convolutions and norms; biases, tokens, position embeddings and layer
    scales follow the cut without a vote (DepGraph, section 3).
    """

    @cache
    def sums(name: str, dim: int) -> Tensor:
        return slice_sums(element_scores(name, parameters[name]), dim)

    scores = {}
    for axis in axes:
        members = [
            member_scores(sums(site.parameter, site.dim), torch.from_numpy(site.index), axis.size)
            for site in axis.sites
            if _is_member(site, parameters)
        ]
        if members:
            scores[axis.name] = group_scores(members)
    return scores


def _is_member(site: Site, parameters: Mapping[str, Tensor]) -> bool:
    return site.parameter in parameters and site.parameter.rpartition(".")[2] == "weight"


def _verified(graph: ModelGraph) -> float:
    """Permute every prunable axis: the outputs must not change. Returns the largest relative error."""
    error = verify_axes(graph).max_error
    if not isfinite(error):
        raise StageError("the model's outputs are not finite", "its weights are broken: check model.checkpoint")
    if error >= MAX_VERIFY_ERROR:
        raise StageError(
            f"the axes of {graph.source.timm} are not understood: permuting them moves its outputs by {error:.1e}",
            "`vitslim axes --verify` shows which axis is wrong",
        )
    return error
