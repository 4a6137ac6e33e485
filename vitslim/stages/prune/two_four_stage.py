"""2:4 sparsity: a fixed mask on the weights of the matrix products (GPUSQ, section 2 of the specs)."""

from __future__ import annotations

from dataclasses import replace

import torch

from vitslim.errors import Problem, StageError, closest
from vitslim.graph.edits import Mask
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, SketchLinear
from vitslim.graph.sketch_graph import sketch
from vitslim.recipe.stages import TwoFour
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.sparsity import (
    IN_MULTIPLE,
    OUT_MULTIPLE,
    PATTERN,
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
        if sketch.sparsity:
            return [Problem("", "the model has 2:4 weights already: a mask is chosen once", "leave one two-four stage")]
        if sketch.bits:
            return [Problem("", "two-four cannot follow quantisation", "put two-four before quantize")]
        if self.config.layers == ():
            return [Problem("layers", "names no layer", "write `gemm` for all eligible layers")]
        problems = [self._unknown(name, sketch) for name in self._names() if not _named(name, sketch)]
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
        return sketch.with_sparsity([layer.weight for layer in self._eligible(sketch)], PATTERN)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002 - needs no data
        """Choose the mask of every eligible layer, once, and set the other weights to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        result = graph.copy()
        weights = result.parameters()
        kept = total = 0.0
        for layer in self._eligible(before):
            weight = weights[layer.weight]
            matrix = weight.detach().flatten(start_dim=1)
            mask = two_four_mask(matrix)
            kept_here, total_here = magnitudes(matrix, mask)
            kept, total = kept + kept_here, total + total_here
            result.masks[layer.weight] = mask.view(weight.shape)
            with torch.no_grad():
                weight.mul_(result.masks[layer.weight])
        result = replace(result, edits=(*result.edits, Mask(PATTERN, tuple(result.masks))))
        changes = tuple(LayerNote(layer=name, what=PATTERN) for name in result.masks)
        skipped = tuple(LayerNote(layer=n.weight, what="skipped", reason=reason) for n, reason in self._unfit(before))
        metrics = {"kept_magnitude": kept / total if total else 1.0, "layers": float(len(changes))}
        return StageResult(result, changes, skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every mask is exactly two of four, and the weights are zero outside it."""
        weights = after.parameters()
        problems = []
        for layer in self._eligible(sketch(before)):
            mask = after.masks.get(layer.weight)
            if mask is None:
                problems.append(Problem(layer.weight, "has no mask"))
            elif not is_two_four(mask.flatten(start_dim=1)):
                problems.append(Problem(layer.weight, "its mask does not keep two of four"))
            elif weights[layer.weight].detach()[~mask].any():
                problems.append(Problem(layer.weight, "has weights outside its mask"))
        return problems

    def _names(self) -> tuple[str, ...]:
        return () if self.config.layers == "gemm" else tuple(self.config.layers)

    def _unknown(self, name: str, sketch: ModelSketch) -> Problem:
        stems = {_stem(layer.weight) for layer in sketch.linears}
        names = stems if "." in name else {stem.rpartition(".")[2] for stem in stems}
        return Problem("layers", f"no layer is called '{name}'", closest(name, names))

    def _chosen(self, sketch: ModelSketch) -> list[SketchLinear]:
        """The layers that the recipe asks for, in the order of the model."""
        if self.config.layers == "gemm":
            return [layer for layer in sketch.linears if layer.role != "head"]
        wanted = {layer.weight for name in self._names() for layer in _named(name, sketch)}
        return [layer for layer in sketch.linears if layer.weight in wanted]

    def _eligible(self, sketch: ModelSketch) -> list[SketchLinear]:
        return [layer for layer in self._chosen(sketch) if not obstacles(layer.out_features, layer.in_features)]

    def _unfit(self, sketch: ModelSketch) -> list[tuple[SketchLinear, str]]:
        """Layers that were asked for and do not divide, each with its reasons."""
        chosen = [(layer, obstacles(layer.out_features, layer.in_features)) for layer in self._chosen(sketch)]
        return [(layer, reason) for layer, reason in chosen if reason]


def _stem(weight: str) -> str:
    return weight.removesuffix(".weight")


def _named(name: str, sketch: ModelSketch) -> list[SketchLinear]:
    """Layers whose weight, or the end of its dotted name, is `name`: `qkv`, `mlp.fc1`, `blocks.0.attn.proj.weight`."""
    return [layer for layer in sketch.linears if f".{_stem(layer.weight)}".endswith(f".{_stem(name)}")]
