"""Global latency-aware pruning while training (NViT, Yang et al., CVPR 2023, arXiv 2110.04869)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vitslim.errors import Problem, StageError
from vitslim.graph.edits import RemoveBlocks, Slice
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Nvit
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.nvit import reach
from vitslim.stages.prune.nvit.measured_target import MeasuredTarget
from vitslim.stages.prune.nvit.planning import make_plan, whole_units
from vitslim.stages.prune.nvit.pruner import ROUNDING, Pruner, Snapshot
from vitslim.stages.prune.nvit.saliency import linked_parameters
from vitslim.stages.prune.nvit.structures import Structures, find_structures, misaligned_layers
from vitslim.stages.prune.nvit.units import Units, cut_units, parameter_masks
from vitslim.stages.prune.verified_axes import float_and_dense, verified_error
from vitslim.training.distillation import train_with_teacher

if TYPE_CHECKING:
    from vitslim.results import LatencyTable


class NvitStage:
    """Runs `prune: {method: nvit}`."""

    def __init__(self, config: Nvit, latency: LatencyTable | None = None) -> None:
        self.config = config
        self.latency = latency
        """The latency table of a latency budget."""

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a float model without masks that has an axis to prune, and a budget that can be reached."""
        if problems := float_and_dense(sketch, "nvit"):
            return problems
        if self.config.budget.latency is not None and self.latency is None:
            message = f"a latency budget needs a latency table, got none at {self.config.budget.table}"
            return [Problem("budget.table", message, "`vitslim bench --table MODEL` writes one")]
        found = find_structures(sketch, self.config)
        return reach.problems(sketch, found, self.config, self.latency)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with all axes pruned alike to the budget; the actual lengths depend on weights and data."""
        found = find_structures(sketch, self.config)
        return sketch.with_sizes(reach.uniform_lengths(sketch, found, self.config, self.latency)).as_approximate()

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Train and prune step by step until the budget is met, then cut the zeroed units.

        Raises StageError if the budget is not met before the training ends.
        """
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        found = find_structures(before, self.config)
        error = verified_error(graph)
        student = graph.copy()
        linked = linked_parameters([graph.axes[one.axis] for one in found.pruned], student.parameters())
        units = whole_units(found)
        measured = self._measured_target(graph, before, found, context)
        plan = make_plan(before, found, linked, self.config, self.latency, measured.correct if measured else None)
        pruner = Pruner(plan, self.config.budget.limit[1] * plan.costs.dense, units)
        # One mask for every parameter that a branch or an axis can zero; the pruner changes them in place.
        masks = parameter_masks(linked, units.alive, student.parameters())
        branches = {name for branch in before.branches for name in branch.parameters}
        ones = {name: torch.ones_like(w, dtype=torch.bool) for name, w in student.parameters().items()
                if name in branches}  # fmt: skip
        note, metrics = train_with_teacher(
            replace(student, masks=ones | masks), self.config, context.data.train,
            context.graph_of, context.seed, context.progress, label="prune: training",
            keep=context.keep, hook=pruner, earlier_outputs=context.outputs_of,
        )  # fmt: skip
        if not pruner.finished:
            raise self._unfinished(pruner)
        results = {name: self._result(graph, snapshot, before, found) for name, snapshot in pruner.snapshots.items()}
        weights = {name: weight.detach() for name, weight in student.parameters().items()}
        final = self._result(graph, Snapshot(pruner.units, weights), before, found)
        final.metrics |= metrics | {"verify_error": error, "pruning_steps": float(pruner.steps)}
        if measured is not None:
            final.metrics |= {f"measured_share.{number}": share for number, share in enumerate(measured.shares, 1)}
        return replace(final, changes=(note, *final.changes), snapshots=results)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that something was cut, that the lengths are multiples of the groups, and that the budget is met."""
        edits = after.edits[len(before.edits) :]
        if not edits or not all(isinstance(edit, Slice | RemoveBlocks) for edit in edits):
            return [Problem("", "no axis was cut")]
        original = sketch(before)
        found = find_structures(original, self.config)
        units = _units_after(edits, found)
        lengths = units.lengths
        problems = [Problem(one.axis, f"has {lengths[one.axis]} indices, expected one of {one.lengths}")
                    for one in found.pruned if lengths[one.axis] not in one.lengths]  # fmt: skip
        key, share = self.config.budget.limit
        remaining = reach.share_of(original, found, self.config, self.latency, units)
        if remaining > share * (1 + ROUNDING) and not self.config.measure:
            problems.append(Problem(f"budget.{key}", f"{remaining:.4f} remains, expected at most {share:g}"))
        return problems

    def _measured_target(
        self, graph: ModelGraph, before: ModelSketch, found: Structures, context: StageContext
    ) -> MeasuredTarget | None:
        if not self.config.measure:
            return None
        if context.deployment is None or self.latency is None:
            raise StageError("`measure` needs a backend that runs ONNX files", "add `onnxruntime:cpu` to the backends")
        int8 = self.latency.precision == "int8"
        write = context.deployment.write_int8 if int8 else context.deployment.write
        costs = reach.costs(before, found, self.config, self.latency)
        return MeasuredTarget(
            graph, write, context.deployment.latency, lambda units: costs.of(units.lengths, units.removed),
            self.config.budget.limit[1], context.workdir,
        )  # fmt: skip

    def _result(self, graph: ModelGraph, snapshot: Snapshot, before: ModelSketch, found: Structures) -> StageResult:
        """Return the cut model of a snapshot, with its notes and shares of the cost."""
        whole = graph.copy()
        with torch.no_grad():
            for name, weight in whole.parameters().items():
                weight.copy_(snapshot.weights[name])
        cut = cut_units(whole, snapshot.units, rescale_norms=self.config.update_weights)
        after = sketch(cut)
        present = {axis.name for axis in cut.axes.axes}
        changes, skipped = _notes(snapshot.units, found, present), (*found.skipped, *misaligned_layers(after))
        key = self.config.budget.limit[0]
        share = reach.share_of(before, found, self.config, self.latency, snapshot.units)
        widths = reach.pruned_widths(before, found, self.config, self.latency, snapshot.units)
        return StageResult(cut, changes, skipped, {f"{key}_share": share}, widths=widths)

    def _unfinished(self, pruner: Pruner) -> StageError:
        key, share = self.config.budget.limit
        costs = pruner.plan.costs
        reached = pruner.plan.cost_of(pruner.units) / costs.dense
        message = (
            f"the budget of {share:g} of the {reach.WORDS[key]} was not met: {reached:.3f} remained after "
            f"{pruner.steps} pruning steps, when the training ended"
        )
        by_units = self.config.allocation == "published" and self.config.steps is None
        more = "raise per_step or train.epochs" if by_units else "raise train.epochs"
        return StageError(message, f"{more}, or lower interval")


def _notes(units: Units, found: Structures, present: Collection[str]) -> tuple[LayerNote, ...]:
    """Return the removed branches and the shortened axes. present: axes that the cut model still has."""
    lengths = units.lengths
    cut = [
        LayerNote(layer=one.axis, result=f"kept {lengths[one.axis]} of {one.size}")
        for one in found.pruned
        if lengths[one.axis] < one.size and (one.axis in present or lengths[one.axis] == 1)
    ]
    gone = [LayerNote(layer=name, result="removed") for name in sorted(units.removed)]
    return (*gone, *cut)


def _units_after(edits: tuple[object, ...], found: Structures) -> Units:
    """Return the units that remain after the edits of the stage."""
    kept: Mapping[str, tuple[int, ...]] = {
        axis: indices for edit in edits if isinstance(edit, Slice) for axis, indices in edit.kept.items()
    }
    alive = {one.axis: torch.ones(one.size, dtype=torch.bool) for one in found.pruned}
    for axis, indices in kept.items():
        alive[axis] = torch.zeros_like(alive[axis])
        alive[axis][list(indices)] = True
    removed = {name for edit in edits if isinstance(edit, RemoveBlocks) for name in edit.names}
    return Units(alive, frozenset(removed))
