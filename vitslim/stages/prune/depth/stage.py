"""Depth pruning: remove the blocks or residual branches whose removal changes the outputs least, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitslim.data import batches
from vitslim.errors import Problem, StageError
from vitslim.graph.anatomy import Branch, find_branches
from vitslim.graph.axes.tensor_shapes import tensor_shapes
from vitslim.graph.edits import RemoveBlocks
from vitslim.graph.edits.remove_blocks import remove_blocks, without_branches
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Depth
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.depth.units import find_units
from vitslim.training.tasks import TaskFunctions, task_for

Images = list[Tensor]
"""Batches of calibration images."""


class DepthStage:
    """Runs `prune: {method: depth}`."""

    def __init__(self, config: Depth) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a float model without masks that has more blocks or branches than `remove`."""
        if sketch.bits:
            message = "depth must come before quantize: it changes the ranges that calibration measured"
            return [Problem("", message, "move `depth` before `quantize`")]
        if sketch.sparsity:
            message = "depth must come before a stage that masks weights: it removes masked layers"
            return [Problem("", message, "move `depth` before it")]
        kind, remove = self.config.unit, self.config.remove
        units = find_units(sketch.branches, kind)
        count, fixed = len(units.removable), len(units.obstacles)
        if not count:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(units.obstacles.items())[:3])
            message = f"this model has no {kind} that can be removed ({reasons or 'no residual branch was found'})"
            return [Problem("method", message, "remove the stage")]
        if remove >= count and not fixed:
            message = f"the model has {count} {_plural(kind)}: removing {remove} would leave none"
            return [Problem("remove", message, f"remove at most {count - 1}" if count > 1 else "remove the stage")]
        if remove > count:
            message = f"only {count} of {count + fixed} {_plural(kind)} can be removed, not {remove}"
            return [Problem("remove", message, f"remove at most {count}")]
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch without its last blocks or branches. Approximate: the removed units depend on data."""
        units = find_units(sketch.branches, self.config.unit).removable
        chosen = list(units.values())[-self.config.remove :]
        return sketch.with_removed([name for names in chosen for name in names]).as_approximate()

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Measure the sensitivity of every unit and remove the least sensitive; repeat until enough are removed."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        images = self._images(context)
        removed = self._removed(graph, images, context)
        noun, task = _plural(self.config.unit), task_for(graph.source)
        changes = [
            LayerNote(
                layer=name,
                result="removed",
                reason=f"changes the outputs by {task.describe_loss(loss)}, least of {of} {noun}",
            )
            for name, (loss, of) in removed.items()
        ]
        obstacles = find_units(before.branches, self.config.unit).obstacles
        skipped = [LayerNote(layer=name, result="skipped", reason=reason) for name, reason in obstacles.items()]
        metrics = {
            "calibration_images": float(sum(map(len, images))),
            f"mean_{task.loss_name}": list(removed.values())[-1][0],
            **{f"mean_{task.loss_name}.{name}": loss for name, (loss, _) in removed.items()},
        }
        return StageResult(remove_blocks(graph, tuple(removed)), tuple(changes), tuple(skipped), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check the number of removed units, that only their parameters are removed, and that the others are equal."""
        edit = after.edits[-1] if len(after.edits) > len(before.edits) else None
        if not isinstance(edit, RemoveBlocks) or len(edit.names) != self.config.remove:
            message = f"expected {self.config.remove} removed {_plural(self.config.unit)}"
            return [Problem("remove", message)]
        branches = find_branches(before.module, tensor_shapes(before.module, before.source.image))
        gone = {name for b in branches if {b.name, b.block} & set(edit.names) for name in b.parameters}
        old, new = before.parameters(), after.parameters()
        problems = [
            Problem(name, "was removed, but belongs to no removed block") for name in old.keys() - new.keys() - gone
        ]
        problems += [Problem(name, "was kept, but its block was removed") for name in new.keys() & gone]
        changed = [name for name in new.keys() & old.keys() if not torch.equal(old[name], new[name])]
        return problems + [Problem(name, "was changed") for name in changed]

    def _images(self, context: StageContext) -> Images:
        """Return the first calibration batches, in an order that depends on the seed alone.

        Raises StageError when there are no calibration images.
        """
        loader = batches(context.data.calibration, self.config.batch, shuffle_seed=context.seed)
        loader = replace(loader, positions=loader.positions[: self.config.batches])
        if not loader.positions:
            raise StageError("sensitivity needs calibration images, got none", "set data.calibration")
        return [images for images, _ in context.progress.track(loader, "reading calibration images")]

    def _removed(self, graph: ModelGraph, images: Images, context: StageContext) -> dict[str, tuple[float, int]]:
        """Return the removed units in order, each with the loss after its removal and the number of candidates."""
        module, task = graph.copy().module.eval(), task_for(graph.source)
        reference = _outputs(module, images)
        removed: dict[str, tuple[float, int]] = {}
        for turn in range(1, self.config.remove + 1):
            branches = find_branches(module, tensor_shapes(module, graph.source.image))
            units = find_units(branches, self.config.unit).removable
            if not units:
                done = ", ".join(removed)
                raise StageError(f"no more can be removed after {done}", f"set `remove: {turn - 1}`")
            members = {name: [b for b in branches if b.name in names] for name, names in units.items()}
            label = f"sensitivity, {turn} of {self.config.remove}"
            scores = {
                name: _sensitivity(module, own, images, reference, task)
                for name, own in context.progress.track(members.items(), label)
            }
            name = min(reversed(scores), key=lambda name: scores[name])  # of equal ones the last is removed
            removed[name] = scores[name], len(scores)
            module = without_branches(module, members[name])
        return removed


def _sensitivity(
    module: GraphModule, branches: Sequence[Branch], images: Images, reference: Tensor, task: TaskFunctions
) -> float:
    """Return the distance of the outputs without these branches, in float64. Raises StageError when it is NaN."""
    found = _outputs(without_branches(module, branches), images)
    loss = float(task.soft_loss(found.double(), reference.double()))
    if isnan(loss):
        name = branches[0].name
        raise StageError(f"the outputs without '{name}' are not finite", "check model.checkpoint")
    return loss


def _outputs(module: GraphModule, images: Images) -> Tensor:
    with torch.no_grad():
        return torch.cat([joined(module(batch)) for batch in images])


def _plural(unit: str) -> str:
    return "branches" if unit == "branch" else "blocks"
