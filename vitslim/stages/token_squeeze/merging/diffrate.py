"""DiffRate (Chen et al., ICCV 2023): drop and merge tokens at rates that are learned for a number of MACs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitslim.errors import Problem
from vitslim.graph.edits import MergeTokens
from vitslim.graph.edits.merge_tokens import KeptTokens, merge_tokens
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, TokenCut, merge_cuts, sketch
from vitslim.recipe.stages import DiffRate
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.token_squeeze.counts import kept_problems, patch_tokens
from vitslim.stages.token_squeeze.merging.checks import chosen_blocks, model_problems
from vitslim.stages.token_squeeze.merging.learning import MacsFraction, Rates, learn_rates
from vitslim.stages.token_squeeze.merging.rounding import Counts, counts_for

TOLERANCE = 0.01
"""Largest distance of the MACs from the target, as a fraction of the dense ones, unless single tokens are larger."""


class DiffRateStage:
    """Runs `token-squeeze: {method: diffrate}`: learns how many tokens each block drops and merges."""

    def __init__(self, config: DiffRate) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require attention over all tokens, blocks that are not squeezed yet, and a number of MACs within reach."""
        problems = model_problems(self.config, sketch)
        if problems:
            return problems
        fewest = dict.fromkeys(chosen_blocks(self.config, sketch), KeptTokens(1, 1))
        least = self._fraction(sketch, fewest)
        if self.config.macs >= least:
            return []
        message = f"got {self.config.macs}, but with one patch token after '{next(iter(fewest))}' {least:.3f} are left"
        reachable = math.ceil(least * 1000) / 1000
        return [Problem("macs", message, f"set `macs` to at least {reachable}, or begin with an earlier block")]

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with the planned MACs; how blocks share them depends on data."""
        counts = self._counts(sketch, self._uniform(sketch))
        return self._with_counts(sketch, counts).as_approximate() if counts else sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Learn the rates on the calibration images and insert the operators. The weights do not change.

        Raises StageError if the loss is not finite.
        """
        before = sketch(graph)
        rates, metrics = self._uniform(before), dict[str, float]()
        if rates:
            macs = macs_by_tokens(before, tuple(rates))
            rates, metrics = learn_rates(graph, self.config, rates, macs, context)
        counts = self._counts(before, rates)
        merged = merge_tokens(graph, "diffrate", counts, self.config.proportional_attention)
        changes, skipped = _notes(before, counts)
        metrics |= {f"patch_tokens.{name}": float(count.keep) for name, count in counts.items()}
        return StageResult(merged, changes, skipped, metrics | {"macs": self._fraction(before, counts)})

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every block has its operators, and that the number of MACs is the requested one."""
        new = after.edits[len(before.edits) :]
        counts = {name: count for edit in new if isinstance(edit, MergeTokens) for name, count in edit.counts.items()}
        problems = kept_problems(after, {name: count.keep for name, count in counts.items()})
        macs = sketch(after).cost().macs / sketch(before).cost().macs
        if abs(macs - self.config.macs) > max(TOLERANCE, _one_token(sketch(before))):
            problems.append(Problem("macs", f"got {macs:.3f} of the MACs, expected {self.config.macs}"))
        return problems

    def _uniform(self, sketch: ModelSketch) -> dict[str, Rates]:
        """Return equal rates of all blocks that give the requested MACs; empty if nothing is to be removed."""
        if self.config.macs == 1:
            return {}
        names = chosen_blocks(self.config, sketch)
        macs = macs_by_tokens(sketch, tuple(names))
        low, high = 0.0, 1.0
        for _ in range(40):
            rate = (low + high) / 2
            left = {name: patch_tokens(sketch, names[0]) * (1 - rate) ** (2 * n) for n, name in enumerate(names, 1)}
            low, high = (rate, high) if macs(left) > self.config.macs else (low, rate)
        return dict.fromkeys(names, Rates(low, low))

    def _counts(self, sketch: ModelSketch, rates: Mapping[str, Rates]) -> Counts:
        if not rates:
            return {}
        patches = patch_tokens(sketch, next(iter(rates)))
        return counts_for(rates, patches, self.config.macs, lambda counts: self._fraction(sketch, counts))

    def _fraction(self, sketch: ModelSketch, counts: Counts) -> float:
        return self._with_counts(sketch, counts).cost().macs / sketch.cost().macs

    def _with_counts(self, sketch: ModelSketch, counts: Counts) -> ModelSketch:
        return sketch.with_squeeze(merge_cuts(sketch, "diffrate", counts, self.config.proportional_attention))


def macs_by_tokens(sketch: ModelSketch, names: tuple[str, ...]) -> MacsFraction:
    """Return the MACs as a function of the patch tokens after each block, without those of matching and merging."""
    cuts = {name: TokenCut(patch_tokens(sketch, name), ()) for name in names}
    spread, dense = sketch.with_squeeze(cuts), sketch.cost().macs
    axes = {spread.token_axes[name]: name for name in names}
    depends = [
        any(axes.keys() & part.axes() for part in (m.count, m.rows, m.reduce, m.columns)) for m in spread.matmuls
    ]
    fixed = sum(m.macs(spread.axes) for m, moves in zip(spread.matmuls, depends, strict=True) if not moves)

    def fraction(tokens: Mapping[str, Any]) -> Any:
        lengths = {axis: tokens[name] + sketch.prefix_tokens for axis, name in axes.items()}
        sizes: dict[str, Any] = {**spread.axes, **lengths}
        return (fixed + sum(m.macs(sizes) for m, moves in zip(spread.matmuls, depends, strict=True) if moves)) / dense

    return fraction


def _one_token(sketch: ModelSketch) -> float:
    """Return the largest fraction of the MACs that a single token can change."""
    return 1 / max(1, patch_tokens(sketch, sketch.blocks[0]))


def _notes(sketch: ModelSketch, counts: Counts) -> tuple[tuple[LayerNote, ...], tuple[LayerNote, ...]]:
    changes, skipped = list[LayerNote](), list[LayerNote]()
    left = patch_tokens(sketch, next(iter(counts))) if counts else 0
    for name, (survivors, keep) in counts.items():
        if keep < left:
            result = f"dropped {left - survivors} and merged {survivors - keep} of {left} patch tokens"
            changes.append(LayerNote(layer=name, result=result, reason="learned on the calibration images"))
        else:
            skipped.append(LayerNote(layer=name, result="skipped", reason=f"keeps all {left} patch tokens"))
        left = keep
    return tuple(changes), tuple(skipped)
