"""2:4 sparsity: a fixed mask on the weights of the matrix products (GPUSQ, section 2 of the specs)."""

from __future__ import annotations

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, SketchLinear
from vitslim.graph.sketch_graph import sketch
from vitslim.graph.sparse import TWO_FOUR
from vitslim.recipe.stages import TwoFour
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.layer_names import chosen_layers, wrong_names
from vitslim.stages.prune.mask_weights import leaks, unmasked_float, with_masks
from vitslim.stages.prune.sparsity import (
    IN_MULTIPLE,
    OUT_MULTIPLE,
    is_two_four,
    magnitudes,
    obstacles,
    two_four_mask,
)


class TwoFourStage:
    """Carries out `prune: {method: two-four}`."""

    def __init__(self, config: TwoFour) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A float model without a mask, in which every named layer exists and divides."""
        if problems := unmasked_float(sketch, "two-four"):
            return problems
        problems = wrong_names(self.config.layers, sketch)
        if self.config.layers != "gemm":
            hint = f"outputs must be a multiple of {OUT_MULTIPLE} and inputs of {IN_MULTIPLE}: leave it out of `layers`"
            problems += [
                Problem("layers", f"{layer.weight} cannot be 2:4 sparse: {reason}", hint)
                for layer, reason in self._unfit(sketch)
            ]
        if not problems and not self._eligible(sketch):
            reasons = "; ".join(f"{layer.weight}: {reason}" for layer, reason in self._unfit(sketch)[:3])
            problems.append(Problem("layers", f"no layer of this model can be 2:4 sparse ({reasons or 'it has none'})"))
        return problems

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Exact: which layers are masked depends on their sizes alone."""
        return sketch.with_sparsity([layer.weight for layer in self._eligible(sketch)], TWO_FOUR)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002 - needs no data
        """Choose the mask of every eligible layer, once, and set the other weights to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        weights = graph.parameters()
        masks = {}
        kept = total = 0.0
        for layer in self._eligible(before):
            matrix = weights[layer.weight].detach().flatten(start_dim=1)
            mask = two_four_mask(matrix)
            kept_here, total_here = magnitudes(matrix, mask)
            kept, total = kept + kept_here, total + total_here
            masks[layer.weight] = mask.view(weights[layer.weight].shape)
        changes = tuple(LayerNote(layer=name, what=TWO_FOUR) for name in masks)
        skipped = tuple(LayerNote(layer=n.weight, what="skipped", reason=reason) for n, reason in self._unfit(before))
        metrics = {"kept_magnitude": kept / total if total else 1.0, "layers": float(len(changes))}
        return StageResult(with_masks(graph, TWO_FOUR, masks), changes, skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every mask is exactly two of four, and the weights are zero outside it."""
        names = [layer.weight for layer in self._eligible(sketch(before))]
        broken = [name for name in names if name in after.masks and not is_two_four(after.masks[name].flatten(1))]
        return leaks(after, names) + [Problem(name, "its mask does not keep two of four") for name in broken]

    def _eligible(self, sketch: ModelSketch) -> list[SketchLinear]:
        chosen = chosen_layers(self.config.layers, sketch)
        return [layer for layer in chosen if not obstacles(layer.out_features, layer.in_features)]

    def _unfit(self, sketch: ModelSketch) -> list[tuple[SketchLinear, str]]:
        """Layers that were asked for and do not divide, each with its reasons."""
        chosen = chosen_layers(self.config.layers, sketch)
        reasons = [(layer, obstacles(layer.out_features, layer.in_features)) for layer in chosen]
        return [(layer, reason) for layer, reason in reasons if reason]
