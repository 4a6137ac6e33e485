"""N:M sparsity: fixed masks on the weights of GEMMs."""

from __future__ import annotations

from vitslim.errors import Problem, StageError
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, SketchLinear, sketch
from vitslim.recipe.stages import TwoFour
from vitslim.results import LayerNote
from vitslim.sparsity import Pattern, parse_pattern
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.layer_choice import chosen_layers, layer_problems
from vitslim.stages.prune.masks import magnitude_inside, mask_violations, masked_or_quantized
from vitslim.stages.prune.two_four.patterns import IN_MULTIPLE, OUT_MULTIPLE, TWO_OF_FOUR, keeps_pattern, obstacles
from vitslim.stages.prune.two_four.reorder import Reordered, permute_channels
from vitslim.stages.prune.two_four.scores import SCORES, MaskInputs, magnitude_masks


class TwoFourStage:
    """Runs `prune: {method: two-four}`."""

    def __init__(self, config: TwoFour) -> None:
        self.config = config
        self.pattern: Pattern = parse_pattern(config.pattern) or TWO_OF_FOUR

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a pattern that removes weights, and a float model without masks whose named layers fit it."""
        name = self.config.pattern
        if parse_pattern(name) is None:
            return [Problem("pattern", f"{name} removes no weight", "N must be below M, as in 2:4")]
        if problems := masked_or_quantized(sketch, "two-four"):
            return problems
        problems = layer_problems(self.config.layers, sketch)
        if self.config.layers != "gemm":
            hint = f"outputs must be a multiple of {OUT_MULTIPLE} and inputs of {IN_MULTIPLE}: remove it from `layers`"
            problems += [
                Problem("layers", f"{layer.weight} cannot be {name} sparse: {reason}", hint)
                for layer, reason in self._ineligible(sketch)
            ]
        if not problems and not self._eligible(sketch):
            reasons = "; ".join(f"{layer.weight}: {reason}" for layer, reason in self._ineligible(sketch)[:3])
            message = f"no layer of this model can be {name} sparse ({reasons or 'it has none'})"
            problems.append(Problem("layers", message))
        return problems

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with masks. Exact: the masked layers depend on their sizes alone."""
        return sketch.with_sparsity([layer.weight for layer in self._eligible(sketch)], self.config.pattern)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Choose the mask of every eligible layer and set the weights outside it to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        names = [layer.weight for layer in self._eligible(before)]
        ordered, reordered = graph, tuple[Reordered, ...]()
        if self.config.permute:
            ordered, reordered = permute_channels(graph, names, self.config.permute, self.pattern, context.progress)
        masks, solved = SCORES[self.config.score](MaskInputs(ordered, names, self.pattern, context))
        changes = tuple(LayerNote(layer=name, result=self.config.pattern) for name in masks)
        changes += tuple(
            LayerNote(
                layer=one.axis, result="channels reordered", reason=f"recovers {one.efficacy:.0%} of the lost magnitude"
            )
            for one in reordered
        )
        skipped = tuple(
            LayerNote(layer=layer.weight, result="skipped", reason=reason) for layer, reason in self._ineligible(before)
        )
        metrics = {"kept_magnitude": magnitude_inside(ordered.parameters(), masks), "layers": float(len(masks))}
        if reordered:
            unordered = magnitude_masks(graph, names, self.pattern)
            metrics["kept_magnitude_in_old_order"] = magnitude_inside(graph.parameters(), unordered)
        return StageResult(mask_weights(solved, self.config.pattern, masks), changes, skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every mask has exactly the pattern and that weights are zero outside it."""
        names = [layer.weight for layer in self._eligible(sketch(before))]
        masks = {name: after.masks[name].flatten(start_dim=1) for name in names if name in after.masks}
        broken = [name for name, mask in masks.items() if not keeps_pattern(mask, self.pattern)]
        return mask_violations(after, names) + [
            Problem(name, f"its mask is not {self.config.pattern}") for name in broken
        ]

    def _eligible(self, sketch: ModelSketch) -> list[SketchLinear]:
        chosen = chosen_layers(self.config.layers, sketch)
        return [layer for layer in chosen if not obstacles(layer.out_features, layer.in_features, self.pattern)]

    def _ineligible(self, sketch: ModelSketch) -> list[tuple[SketchLinear, str]]:
        """Return the chosen layers whose sizes do not fit the pattern, each with its reasons."""
        chosen = chosen_layers(self.config.layers, sketch)
        reasons = [(layer, obstacles(layer.out_features, layer.in_features, self.pattern)) for layer in chosen]
        return [(layer, reason) for layer, reason in reasons if reason]
