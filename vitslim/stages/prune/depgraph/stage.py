"""Structural pruning: remove the least important indices of every prunable axis (DepGraph, Fang et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vitslim.errors import Problem, StageError
from vitslim.graph.edits import Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Budget, DepGraph
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depgraph.cutting import Cutter, rank_lists, score_inputs
from vitslim.stages.prune.depgraph.group_sparsity import train_sparse
from vitslim.stages.prune.depgraph.groups import find_members
from vitslim.stages.prune.depgraph.importance import IMPORTANCES
from vitslim.stages.prune.depgraph.schedule import choose_cuts
from vitslim.stages.prune.depgraph.targets import Target, find_targets
from vitslim.stages.prune.model_costs import cost_function
from vitslim.stages.prune.verified_axes import float_and_dense, verified_error

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

ROUNDING = 1e-9
"""Tolerance for floating-point rounding when a cost is compared with its budget, as a fraction of the cost."""


class DepGraphStage:
    """Runs `prune: {method: depgraph}`."""

    def __init__(self, config: DepGraph, latency: LatencyTable | None = None) -> None:
        self.config = config
        self.latency = latency
        """The latency table of a latency budget."""

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a float model without masks that has the named axes, an axis to cut, and a reachable budget."""
        if problems := float_and_dense(sketch, "depgraph"):
            return problems
        cuts = choose_cuts(sketch, self.config, self.latency)
        if cuts.problems:
            return list(cuts.problems)
        if cuts.keep:
            return []
        reasons = sorted({note.reason for note in cuts.skipped}) or ["no axis of this model can be cut"]
        where = "pruning_ratio" if self.config.pruning_ratio == 0 else ""
        message = f"nothing can be pruned: {'; '.join(reasons[:3])}"
        return [Problem(where, message, "raise pruning_ratio or lower round_to")]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with the new axis lengths; weights and data only decide which indices are removed.

        Exact for `scope: local`. For other scopes the lengths depend on the weights too, and the estimate is the local
        split, which has the same ratios and the same budget.
        """
        after = sketch.with_sizes(choose_cuts(sketch, self.config, self.latency).keep)
        return after if self.config.scope == "local" else after.as_approximate()

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Verify the axes by permutation, run the sparse training if there is any, then score and cut step by step.

        Raises StageError when there is nothing to cut or the budget cannot be reached.
        """
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        found = find_targets(before, self.config)
        metrics = {"verify_error": verified_error(graph)}
        current, inputs = graph, score_inputs(graph, self.config, context)
        if self.config.group_sparsity is not None:
            members = find_members([graph.axes[target.axis] for target in found.cut], graph.parameters())
            current, trained = train_sparse(graph, members, self.config.group_sparsity, context)
            metrics |= trained
        lists = rank_lists(graph, self.config, found.cut)
        cutter = Cutter(self.config, before, found.cut, lists, inputs, self.latency)
        for number in range(1, self.config.steps + 1):
            current = cutter.cut(current, number / self.config.steps)
        lengths = {target.axis: target.size for target in found.cut} | _cut_lengths(graph, current)
        cut = [target for target in found.cut if lengths[target.axis] < target.size]
        notes = tuple(LayerNote(layer=t.axis, result=f"kept {lengths[t.axis]} of {t.size}") for t in cut)
        if self.config.budget is not None:
            metrics["budget_share"] = self._budget_share(before, self.config.budget, lengths)
        if IMPORTANCES[self.config.importance].uses_images:
            metrics["calibration_images"] = float(sum(map(len, inputs.images.positions)))
        return StageResult(current, notes, found.skipped, metrics | {"axes_cut": float(len(cut))})

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every axis has the planned length and that the model is within its budget.

        For scopes other than local, check that no axis lost more than its limit instead of the planned length.
        """
        edits = after.edits[len(before.edits) :]
        if not edits or not all(isinstance(edit, Slice) for edit in edits):
            return [Problem("", "no axis was cut")]
        original = sketch(before)
        targets = find_targets(original, self.config).cut
        lengths = _lengths(after, targets)
        if self.config.scope == "local":
            planned = {target.axis: target.size for target in targets}
            planned |= choose_cuts(original, self.config, self.latency).keep
            return [
                Problem(name, f"has {lengths[name]} indices, expected {count}")
                for name, count in planned.items()
                if lengths[name] != count
            ]
        short = [t for t in targets if lengths[t.axis] < t.least]
        problems = [Problem(t.axis, f"has {lengths[t.axis]} indices, expected at least {t.least}") for t in short]
        if self.config.budget is not None:
            key, share = self.config.budget.limit
            remaining = self._budget_share(original, self.config.budget, lengths)
            if remaining > share + ROUNDING:
                problems.append(Problem(f"budget.{key}", f"{remaining:.4f} remains, expected at most {share:g}"))
        return problems

    def _budget_share(self, original: ModelSketch, budget: Budget, lengths: Mapping[str, int]) -> float:
        """Return the remaining fraction of the cost that the budget limits."""
        costs, _ = cost_function(original, budget, lengths, self.latency)
        return costs(lengths) / costs({})


def _cut_lengths(before: ModelGraph, after: ModelGraph) -> dict[str, int]:
    """Return the lengths of the axes that were cut between two graphs, from the recorded edits."""
    edits = after.edits[len(before.edits) :]
    return {name: len(kept) for edit in edits if isinstance(edit, Slice) for name, kept in edit.kept.items()}


def _lengths(graph: ModelGraph, targets: tuple[Target, ...]) -> dict[str, int]:
    """Return the lengths of axes. An axis of a single index is no longer an axis of the graph."""
    present = {axis.name: axis.size for axis in graph.axes.axes}
    return {target.axis: present.get(target.axis, 1) for target in targets}
