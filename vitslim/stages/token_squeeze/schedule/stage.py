"""Token squeezing by a schedule: the number of tokens that each block keeps is chosen for a target cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.stages import KeepBest
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.token_squeeze.counts import block_problems, patch_tokens, support_problems
from vitslim.stages.token_squeeze.schedule.choose import (
    choose_schedule,
    kept_tokens,
    measured_counts,
    pair_losses,
    possible_counts,
    uniform_schedule,
)
from vitslim.stages.token_squeeze.schedule.cost_model import MACS, table_latency
from vitslim.stages.token_squeeze.schedule.costs import Cuts, ScheduleCosts, schedule_costs
from vitslim.stages.token_squeeze.schedule.sensitivity import Squeeze, measure_losses
from vitslim.stages.token_squeeze.schedule.solver import ROUNDING, Floats, total
from vitslim.training.tasks import TaskFunctions, task_for

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

IMAGES = 64
"""Calibration images on which the loss of each block is measured."""
WORDS = {"macs": "MACs", "latency": "latency"}


@dataclass(frozen=True)
class ScheduledMethod:
    """The parts of a squeezing method that a schedule uses."""

    squeeze: Squeeze
    cuts: Cuts
    added: int = 0
    """Tokens that the method adds to the kept ones of a block."""


class ScheduledStage:
    """Runs `token-squeeze` with a `schedule`. A later distill stage can recover accuracy."""

    def __init__(
        self, config: KeepBest, target: CostTarget, method: ScheduledMethod, latency: LatencyTable | None = None
    ) -> None:
        self.config = config
        self.target = target
        self.method = method
        self.latency = latency
        """The latency table of a latency target."""

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a model whose tokens can be squeezed and are not squeezed yet, and a target that can be reached."""
        if problems := support_problems(sketch):
            return problems
        if sketch.squeezed:
            message = "an earlier stage squeezes tokens, and a schedule starts from all of them"
            return [Problem("schedule", message, "use `blocks` and `keep_rate`, or remove the earlier stage")]
        if self.target.latency is not None and self.latency is None:
            message = f"`latency` needs a latency table, got none at {self.target.table or 'schedule.table'}"
            return [Problem("schedule.table", message, "`vitslim bench --table MODEL` writes one")]
        return block_problems(sketch, self._positions(sketch)) or self._target_problems(sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with one keep rate that meets the target. The actual counts depend on images."""
        costs = self._costs(sketch)
        levels = uniform_schedule(costs, self._positions(sketch), self._budget(costs))
        kept = kept_tokens(levels, costs, self.method.added)
        return sketch.with_squeeze(self.method.cuts(sketch, kept)).as_approximate()

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Measure the sensitivity of the blocks, choose a schedule and squeeze the tokens. Weights do not change."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        images = context.data.calibration.balanced(IMAGES, context.seed)
        if not len(images):
            raise StageError("a token schedule needs calibration images, got none", "set data.calibration")
        costs, added, task = self._costs(before), self.method.added, task_for(graph.source)
        counts = measured_counts(costs.counts[0])
        blocks = {before.blocks[position]: counts for position in self._positions(before)}
        losses = measure_losses(graph, blocks, self.method.squeeze, images, context.progress)
        pairs = pair_losses(losses, costs, added)
        levels = choose_schedule(pairs, costs, self._budget(costs))
        kept = kept_tokens(levels, costs, added)
        metrics = {f"patch_tokens.{name}": float(count) for name, count in kept.items()}
        metrics |= {f"mean_{task.loss_name}.{name}": found[len(counts) // 2] for name, found in losses.items()}
        metrics[f"predicted_{task.loss_name}"] = total(pairs, levels)
        metrics[f"{self.target.limit[0]}_share"] = costs.of(levels) / costs.dense
        metrics["calibration_images"] = float(len(images))
        changes, skipped = _notes(list(blocks), levels, costs, pairs, task)
        return StageResult(self.method.squeeze(graph, kept), changes, skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that the model meets the target."""
        original, squeezed = sketch(before), sketch(after)
        costs = self._costs(original)
        present = [patch_tokens(squeezed, name) for name in costs.blocks]
        if unplanned := [count for count in present if count not in costs.counts]:
            return [Problem("schedule", f"a block passes on {unplanned[0]} patch tokens, which is not planned")]
        key, share = self.target.limit
        remaining = costs.of([costs.counts.index(count) for count in present]) / costs.dense
        if remaining <= share * (1 + ROUNDING):
            return []
        return [Problem(f"schedule.{key}", f"{remaining:.4f} remains, expected at most {share:g}")]

    def _target_problems(self, sketch: ModelSketch) -> list[Problem]:
        """Return a problem if the fewest tokens do not meet the target."""
        costs = self._costs(sketch)
        key, share = self.target.limit
        least = costs.least / costs.dense
        if least <= share * (1 + ROUNDING):
            return []
        if least > 1 - ROUNDING:
            message = f"fewer tokens do not reduce the {WORDS[key]} of this model"
            return [Problem(f"schedule.{key}", message, "remove the stage, or let earlier blocks squeeze tokens")]
        message = f"{share:g} of the {WORDS[key]} cannot be reached: {least:.3f} remains with the fewest tokens"
        return [Problem(f"schedule.{key}", message, "raise it, or let earlier blocks squeeze tokens with `blocks`")]

    def _positions(self, sketch: ModelSketch) -> Sequence[int]:
        """Return the positions of the blocks that may squeeze tokens.

        By default not the last: after its attention often only the class token is used.
        """
        return range(len(sketch.blocks) - 1) if self.config.blocks is None else self.config.blocks

    def _costs(self, sketch: ModelSketch) -> ScheduleCosts:
        names = [sketch.blocks[position] for position in self._positions(sketch)]
        counts = possible_counts(max(patch_tokens(sketch, name) for name in names))
        model = MACS if self.latency is None else table_latency(self.latency)
        return schedule_costs(sketch, names, counts, self.method.cuts, model, self.method.added)

    def _budget(self, costs: ScheduleCosts) -> float:
        return self.target.limit[1] * costs.dense


def _notes(
    names: Sequence[str], levels: Sequence[int], costs: ScheduleCosts, losses: Floats, task: TaskFunctions
) -> tuple[tuple[LayerNote, ...], tuple[LayerNote, ...]]:
    """Return the blocks that squeeze tokens, and those that might but do not."""
    changes, skipped = [], []
    for block, name in enumerate(costs.blocks):
        before, after = (0, *levels)[block], levels[block]
        if before != after:
            result = f"kept {costs.counts[after]} of {costs.counts[before]} patch tokens"
            reason = f"predicted to change the outputs by {task.describe_loss(losses[block, before, after])}"
            changes.append(LayerNote(layer=name, result=result, reason=reason))
        elif name in names:
            skipped.append(LayerNote(layer=name, result="skipped", reason="other blocks lose less by squeezing tokens"))
    return tuple(changes), tuple(skipped)
