"""Methods that keep the tokens with the highest attention scores: eTPS (CVPR 2023), EViT (ICLR 2022), prune-only."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vitslim.errors import Problem
from vitslim.graph.edits.insert_squeeze import FUSED_TOKENS, insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, attention_cuts, sketch
from vitslim.recipe.stages import KeepBest
from vitslim.results import LayerNote
from vitslim.stages.contract import Stage, StageContext, StageResult
from vitslim.stages.token_squeeze.counts import (
    Count,
    block_problems,
    count_problems,
    kept_problems,
    planned_counts,
    support_problems,
)
from vitslim.stages.token_squeeze.schedule.stage import ScheduledMethod, ScheduledStage

if TYPE_CHECKING:
    from vitslim.results import LatencyTable

ASSUMED = "the paper does not publish the rounding, so it is assumed"


def keep_best_stage(config: KeepBest, latency: LatencyTable | None) -> Stage:
    """Return the stage of a config: with a schedule, or with keep rates. latency: the table of a latency target."""
    if config.schedule is None:
        return KeepBestStage(config)
    method = ScheduledMethod(
        squeeze=partial(insert_squeeze, method=config.method),
        cuts=partial(attention_cuts, method=config.method),
        added=FUSED_TOKENS.get(config.method, 0),
    )
    return ScheduledStage(config, config.schedule, method, latency)


class KeepBestStage:
    """Runs `token-squeeze` with keep rates for `etps`, `evit` and `prune-only`.

    A later distill stage can recover accuracy.
    """

    def __init__(self, config: KeepBest) -> None:
        self.config = config
        self._added = FUSED_TOKENS.get(config.method, 0)

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require attention over all tokens without position bias, and existing blocks that are not squeezed yet."""
        found = support_problems(sketch) or block_problems(sketch, self.config.positions)
        return found or count_problems(sketch, self._counts(sketch))

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with fewer tokens after each block. Exact: the counts do not depend on data."""
        return sketch.with_squeeze(attention_cuts(sketch, self._kept(sketch), self.config.method))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002
        """Insert the operators that score and squeeze tokens. The weights do not change."""
        before = sketch(graph)
        changes, skipped = [], []
        for name, count in self._counts(before).items():
            if count.after < count.before:
                changes.append(LayerNote(layer=name, result=self._describe(count), reason=self._rounding()))
            else:
                skipped.append(LayerNote(layer=name, result="skipped", reason=f"keeps all {count.before} patch tokens"))
        kept = self._kept(before)
        metrics = {f"patch_tokens.{name}": float(count) for name, count in kept.items()}
        return StageResult(insert_squeeze(graph, kept, self.config.method), tuple(changes), tuple(skipped), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every block has its operator and keeps the planned number of tokens."""
        kept = {name: count + self._added for name, count in self._kept(sketch(before)).items()}
        return kept_problems(after, kept)

    def _describe(self, count: Count) -> str:
        fused = " and fused the others into one" if self._added else ""
        return f"kept {count.after} of {count.before} patch tokens{fused}"

    def _rounding(self) -> str:
        assumed = f"; {ASSUMED}" if "rounding" in type(self.config).model_fields else ""
        return f"rounded by {self.config.rounded}{assumed}"

    def _counts(self, sketch: ModelSketch) -> dict[str, Count]:
        return planned_counts(sketch, self.config.keep_rates, self.config.rounded, self._added)

    def _kept(self, sketch: ModelSketch) -> dict[str, int]:
        """Return the number of kept patch tokens by block name, without blocks that keep all."""
        return {name: count.after for name, count in self._counts(sketch).items() if count.after < count.before}
