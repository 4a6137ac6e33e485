"""eTPS (TPS, CVPR 2023, section 3.3): the class token's attention says which tokens stay; they absorb the others."""

from __future__ import annotations

from vitslim.errors import Problem
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Etps
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.token_squeeze.counts import Count, token_counts

ASSUMED = "the rounding is assumed, as the paper does not publish it"


class EtpsStage:
    """Token squeezing without training; a distill stage behind it recovers what it costs."""

    def __init__(self, config: Etps) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A class token, attention without windows or position bias, and blocks that exist and are not squeezed yet."""
        if sketch.squeeze_obstacle:
            message = f"token-squeeze (etps) cannot run on this model: {sketch.squeeze_obstacle}"
            return [Problem("method", message, "leave the stage out, or take a plain ViT or DeiT")]
        problems = self._wrong_blocks(sketch)
        return problems or self._wrong_counts(sketch)

    def _wrong_blocks(self, sketch: ModelSketch) -> list[Problem]:
        count, blocks = len(sketch.blocks), self.config.blocks
        problems = [
            Problem("blocks", f"block {index} does not exist: the model has {count} blocks, 0 to {count - 1}")
            for index in blocks
            if index >= count
        ]
        if not blocks:
            problems.append(Problem("blocks", "names no block", "list block numbers, such as [3, 6, 9]"))
        if len(set(blocks)) < len(blocks):
            problems.append(Problem("blocks", "names a block twice", "list each block once"))
        problems += [
            Problem("blocks", f"block {index} is squeezed already by an earlier stage", "squeeze each block once")
            for index in blocks
            if index < count and sketch.blocks[index] in sketch.squeezed
        ]
        return problems

    def _wrong_counts(self, sketch: ModelSketch) -> list[Problem]:
        problems = []
        for name, count in self._counts(sketch).items():
            later = sketch.blocks[sketch.blocks.index(name) + 1 :]
            needed = max((_patches(sketch, block) for block in later if block in sketch.squeezed), default=0)
            if count.after < max(1, needed):
                reason = f"but a later block was squeezed to {needed}" if needed else "and none would be left"
                message = f"'{name}' would keep {count.after} of {count.before} patch tokens, {reason}"
                problems.append(Problem("keep", message, "raise keep"))
        return problems

    def _counts(self, sketch: ModelSketch) -> dict[str, Count]:
        """Block name to patch tokens before and after, in graph order."""
        names = [sketch.blocks[index] for index in sorted(self.config.blocks)]
        present = {block: _patches(sketch, block) for block in sketch.blocks}
        return token_counts(present, names, self.config.keep_rate, self.config.rounding)

    def _keep(self, sketch: ModelSketch) -> dict[str, int]:
        """Block name to patch tokens that stay, without blocks that keep all."""
        return {name: count.after for name, count in self._counts(sketch).items() if count.after < count.before}

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """The model with fewer tokens behind each of the blocks; exact, as counts do not depend on data."""
        return sketch.with_squeeze(self._keep(sketch))

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002
        """Insert class attention and squeezing; weights stay as they are."""
        before = sketch(graph)
        changes, skipped = [], []
        for name, count in self._counts(before).items():
            if count.after < count.before:
                what = f"kept {count.after} of {count.before} patch tokens"
                changes.append(
                    LayerNote(layer=name, result=what, reason=f"rounded by {self.config.rounding}; {ASSUMED}")
                )
            else:
                skipped.append(LayerNote(layer=name, result="skipped", reason=f"keeps all {count.before} patch tokens"))
        keep = self._keep(before)
        metrics = {f"patch_tokens.{name}": float(count) for name, count in keep.items()}
        return StageResult(insert_squeeze(graph, keep), tuple(changes), tuple(skipped), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every block has its squeeze, and as many tokens behind it as promised."""
        anatomy = find_anatomy(after)
        problems = []
        for name, count in self._keep(sketch(before)).items():
            block = anatomy.block(name)
            if block is None or block.squeeze is None:
                problems.append(Problem("blocks", f"'{name}' was not squeezed"))
            elif anatomy.shapes[block.squeeze][1] != count + anatomy.prefix_tokens:
                problems.append(Problem("blocks", f"'{name}' does not keep {count} patch tokens"))
        return problems


def _patches(sketch: ModelSketch, block: str) -> int:
    """Patch tokens behind the attention of a block."""
    return sketch.tokens_at(block) - sketch.prefix_tokens
