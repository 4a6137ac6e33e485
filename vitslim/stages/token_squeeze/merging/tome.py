"""ToMe (Token Merging, Bolya et al., ICLR 2023): merge pairs of similar patch tokens in every block."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, merge_cuts, sketch
from vitslim.recipe.stages import Tome
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.token_squeeze.counts import kept_problems, patch_tokens
from vitslim.stages.token_squeeze.merging.checks import chosen_blocks, model_problems
from vitslim.stages.token_squeeze.merging.removal import Removal, removal_schedule, removals


class TomeStage:
    """Runs `token-squeeze: {method: tome}`. It trains nothing; a later distill stage can recover accuracy."""

    def __init__(self, config: Tome) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require attention over all tokens without position bias, and existing blocks that are not squeezed yet."""
        return model_problems(self.config, sketch)

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with fewer tokens after each block. Exact: the counts do not depend on data."""
        return sketch.with_squeeze(merge_cuts(sketch, "tome", self._kept(sketch), self.config.proportional_attention))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002
        """Insert the operators that match and merge tokens. The weights do not change."""
        before = sketch(graph)
        changes: list[LayerNote] = []
        skipped: list[LayerNote] = []
        for name, removal in self._removals(before).items():
            note = _note(name, removal)
            (changes if removal.merged else skipped).append(note)
        kept = self._kept(before)
        metrics = {f"patch_tokens.{name}": float(count.keep) for name, count in kept.items()}
        merged = merge_tokens(graph, "tome", kept, self.config.proportional_attention)
        return StageResult(merged, tuple(changes), tuple(skipped), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every block has its operators and keeps the planned number of tokens."""
        return kept_problems(after, {name: count.keep for name, count in self._kept(sketch(before)).items()})

    def _removals(self, sketch: ModelSketch) -> dict[str, Removal]:
        names = chosen_blocks(self.config, sketch)
        requested = removal_schedule(self.config.remove, len(names), self.config.decrease)
        present = {name: patch_tokens(sketch, name) for name in sketch.blocks}
        return removals(present, dict(zip(names, requested, strict=True)))

    def _kept(self, sketch: ModelSketch) -> dict[str, KeptTokens]:
        """Return the counts by block name, without blocks that keep all tokens."""
        return {name: removal.kept for name, removal in self._removals(sketch).items() if removal.merged}


def _note(name: str, removal: Removal) -> LayerNote:
    capped = removal.merged < removal.requested
    reason = f"at most half of the patch tokens, {removal.requested} were requested" if capped else ""
    if removal.merged:
        result = f"merged {removal.merged} of {removal.before} patch tokens"
        return LayerNote(layer=name, result=result, reason=reason)
    return LayerNote(layer=name, result="skipped", reason=reason or f"keeps all {removal.before} patch tokens")
