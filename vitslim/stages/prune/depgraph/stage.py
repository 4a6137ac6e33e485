"""Structural pruning: cut the least important indices of every prunable axis (DepGraph, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING

from vitslim.errors import Problem, StageError
from vitslim.graph.edits import Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.graph.verify import verify_axes
from vitslim.recipe.stages import Budget, DepGraph
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.budget import cost_function
from vitslim.stages.prune.depgraph.cutting import Cutter, rank_lists
from vitslim.stages.prune.depgraph.groups import find_members
from vitslim.stages.prune.depgraph.schedule import choose_cuts, spoken_of
from vitslim.stages.prune.depgraph.scores import Scorer
from vitslim.stages.prune.depgraph.sparse_training import train_sparse
from vitslim.stages.prune.depgraph.targets import Target, find_targets

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

ROUNDING = 1e-9
"""By how much a cost may miss its budget through the rounding of floating-point numbers."""


class DepGraphStage:
    """Carries out `prune: {method: depgraph}`."""

    def __init__(self, config: DepGraph, latency: LatencyTable | None = None) -> None:
        self.config = config
        self.latency = latency
        """What a latency budget is judged by."""

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A float model without 2:4 weights that has what the recipe names, something to cut, and a budget in reach."""
        if sketch.bits:
            return [Problem("", "structural pruning cannot follow quantization", "put prune before quantize")]
        if sketch.sparsity:
            return [Problem("", "structural pruning would break the 2:4 pattern", "put depgraph before two-four")]
        if self.config.group_sparsity is not None and self.config.group_sparsity.train.mix:
            return [Problem("sparsity.train.mix", "this training goes by labels, and mixtures of images have none")]
        cuts = choose_cuts(sketch, self.config, self.latency)
        if cuts.problems:
            return list(cuts.problems)
        if cuts.keep:
            return []
        reasons = sorted({note.reason for note in cuts.skipped}) or ["no axis of this model can be cut"]
        where = "pruning_ratio" if self.config.pruning_ratio == 0 else ""
        return [Problem(where, f"nothing can be pruned: {'; '.join(reasons[:3])}", "raise ratio or lower round_to")]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Lengths depend on the configuration alone, only which indices go depends on weights and data.

        Exact for `scope: local`. Where indices of several axes are ranked together lengths depend on weights too: the
        estimate takes the local split, which has the same ratios and the same budget.
        """
        after = sketch.with_sizes(choose_cuts(sketch, self.config, self.latency).keep)
        return after if self.config.scope == "local" else after.as_guess()

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Check the axes by permutation, train for sparsity where asked, then score every index and cut, step by step.

        Raises StageError when there is nothing to cut or the budget is out of reach.
        """
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        found = find_targets(before, self.config)
        metrics = {"verify_error": _verified(graph)}
        current, scorer = graph, Scorer(self.config, context)
        if self.config.group_sparsity is not None:
            members = find_members([graph.axes[target.axis] for target in found.cut], graph.parameters())
            current, trained = train_sparse(graph, members, self.config.group_sparsity, context)
            metrics |= trained
        lists = rank_lists(graph, self.config, found.cut)
        cutter = Cutter(self.config, before, found.cut, lists, scorer, self.latency)
        for number in range(1, self.config.steps + 1):
            current = cutter.cut(current, number / self.config.steps)
        lengths = {target.axis: target.size for target in found.cut} | _cut_lengths(graph, current)
        cut = [target for target in found.cut if lengths[target.axis] < target.size]
        notes = tuple(LayerNote(layer=t.axis, result=f"kept {lengths[t.axis]} of {t.size}") for t in cut)
        if self.config.budget is not None:
            metrics["budget_share"] = self._budget_share(before, self.config.budget, lengths)
        return StageResult(current, notes, found.skipped, metrics | {"axes_cut": float(len(cut))} | scorer.metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every axis that was cut has the promised length, and the model is within its budget.

        Lengths are promised where each axis is cut by itself; otherwise that no axis lost more than it may.
        """
        edits = after.edits[len(before.edits) :]
        if not edits or not all(isinstance(edit, Slice) for edit in edits):
            return [Problem("", "no axis was cut")]
        original = sketch(before)
        targets = find_targets(original, self.config).cut
        lengths = _lengths(after, targets)
        if self.config.scope == "local":
            promised = {target.axis: target.size for target in targets}
            promised |= choose_cuts(original, self.config, self.latency).keep
            return [
                Problem(name, f"has {lengths[name]} indices instead of {count}")
                for name, count in promised.items()
                if lengths[name] != count
            ]
        short = [t for t in targets if lengths[t.axis] < t.least]
        problems = [Problem(t.axis, f"has {lengths[t.axis]} indices, at least {t.least} should stay") for t in short]
        if self.config.budget is not None:
            key, share = spoken_of(self.config.budget)
            stays = self._budget_share(original, self.config.budget, lengths)
            if stays > share + ROUNDING:
                problems.append(Problem(f"budget.{key}", f"{stays:.4f} stays instead of {share:g}"))
        return problems

    def _budget_share(self, original: ModelSketch, budget: Budget, lengths: Mapping[str, int]) -> float:
        """The share of the original cost that stays, in the terms of the budget."""
        costs, _ = cost_function(original, budget, lengths, self.latency)
        return costs(lengths) / costs({})


def _cut_lengths(before: ModelGraph, after: ModelGraph) -> dict[str, int]:
    """Lengths of the axes that were cut in between, as the edits say."""
    edits = after.edits[len(before.edits) :]
    return {name: len(kept) for edit in edits if isinstance(edit, Slice) for name, kept in edit.kept.items()}


def _lengths(graph: ModelGraph, targets: tuple[Target, ...]) -> dict[str, int]:
    """Lengths of axes. One that is down to a single index is no axis any more."""
    present = {axis.name: axis.size for axis in graph.axes.axes}
    return {target.axis: present.get(target.axis, 1) for target in targets}


def _verified(graph: ModelGraph) -> float:
    """Permute every prunable axis: the outputs must not change. Returns the largest relative error."""
    found = verify_axes(graph)
    if not isfinite(found.max_error):
        raise StageError("the model's outputs are not finite", "its weights are broken: check model.checkpoint")
    if not found.holds:
        raise StageError(
            f"the axes of {graph.source.timm} are not understood: permuting them moves its outputs by "
            f"{found.max_error:.1e}",
            "`vitslim axes --verify` shows which axis is wrong",
        )
    return found.max_error
