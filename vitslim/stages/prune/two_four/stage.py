"""2:4 sparsity and its kin: a fixed mask on the weights of the matrix products (GPUSQ, section 2 of the specs)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vitslim.errors import Problem, StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import ModelSketch, SketchLinear, sketch
from vitslim.recipe.stages import TwoFour
from vitslim.results import LayerNote
from vitslim.sparsity import Pattern, parse_pattern
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.layer_names import chosen_layers, wrong_names
from vitslim.stages.prune.masks import leaks, unmasked_float
from vitslim.stages.prune.two_four.alps import best_refit
from vitslim.stages.prune.two_four.patterns import (
    IN_MULTIPLE,
    OUT_MULTIPLE,
    TWO_OF_FOUR,
    keeps_pattern,
    magnitudes,
    obstacles,
    pattern_mask,
)
from vitslim.stages.prune.two_four.permute import Reordered, permute_channels
from vitslim.stages.prune.two_four.sparsegpt import refit_rows, sparsegpt_mask, wanda_scores
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layerwise import COPIES, LayerSolver

BATCH = 32
GRADIENTS = 1024
"""Where a score is joint, so many classes are drawn at least, several for an image where there are few. DeiT-Tiny from
256 images: 1.9 dB by four draws an image, 1.7 dB by one combination of the logits; from 1,500 images 2.1 dB by four
draws and 2.0 dB by one or by a combination. By row nothing is won: 1.1 dB by SparseGPT, 1.3 dB by ALPS either way."""


def _wanda(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    mask = pattern_mask(wanda_scores(weight, curvature), pattern)
    return mask, weight * mask


def _sparsegpt(weight: Tensor, curvature: Curvature, pattern: Pattern) -> tuple[Tensor, Tensor]:
    mask = sparsegpt_mask(weight, curvature, pattern)
    return mask, refit_rows(weight, mask, curvature)


SOLVERS = {"wanda": _wanda, "sparsegpt": _sparsegpt, "kfac": best_refit}
"""Mask and weights within it, from the weight and what a change of it costs."""
JOINT = ("kfac",)
"""Scores that know what outputs have in common; to the others a layer's rows have nothing to do with each other."""


class TwoFourStage:
    """Carries out `prune: {method: two-four}`."""

    def __init__(self, config: TwoFour) -> None:
        self.config = config
        self.pattern: Pattern = parse_pattern(config.pattern) or TWO_OF_FOUR

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A pattern that drops weights, and a float model without a mask, in which every named layer divides."""
        if parse_pattern(self.config.pattern) is None:
            return [Problem("pattern", f"{self.config.pattern} drops no weight", "N must be below M, as in 2:4")]
        if problems := unmasked_float(sketch, "two-four"):
            return problems
        problems = wrong_names(self.config.layers, sketch)
        if self.config.layers != "gemm":
            hint = f"outputs must be a multiple of {OUT_MULTIPLE} and inputs of {IN_MULTIPLE}: leave it out of `layers`"
            problems += [
                Problem("layers", f"{layer.weight} cannot be {self.config.pattern} sparse: {reason}", hint)
                for layer, reason in self._unfit(sketch)
            ]
        if not problems and not self._eligible(sketch):
            reasons = "; ".join(f"{layer.weight}: {reason}" for layer, reason in self._unfit(sketch)[:3])
            message = f"no layer of this model can be {self.config.pattern} sparse ({reasons or 'it has none'})"
            problems.append(Problem("layers", message))
        return problems

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Exact: which layers are masked depends on their sizes alone."""
        return sketch.with_sparsity([layer.weight for layer in self._eligible(sketch)], self.config.pattern)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Choose the mask of every eligible layer, once, and set the other weights to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        names = [layer.weight for layer in self._eligible(before)]
        plain, reordered = graph, tuple[Reordered, ...]()
        if self.config.permute:
            plain, reordered = permute_channels(graph, names, self.config.permute, context.progress)
        masks, masked = self._masked(plain, names, context)
        changes = tuple(LayerNote(layer=name, result=self.config.pattern) for name in masks)
        changes += tuple(
            LayerNote(layer=one.axis, result="channels reordered", reason=f"{one.efficacy:.0%} of the loss won back")
            for one in reordered
        )
        skipped = tuple(LayerNote(layer=n.weight, result="skipped", reason=reason) for n, reason in self._unfit(before))
        metrics = {"kept_magnitude": _kept(plain, masks), "layers": float(len(masks))}
        if reordered:
            here = {name: self._mask_by_size(graph, name) for name in names}
            metrics["kept_magnitude_in_old_order"] = _kept(graph, here)
        return StageResult(masked, changes, skipped, metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every mask keeps exactly the pattern, and the weights are zero outside it."""
        names = [layer.weight for layer in self._eligible(sketch(before))]
        masks = {name: after.masks[name].flatten(start_dim=1) for name in names if name in after.masks}
        broken = [name for name, mask in masks.items() if not keeps_pattern(mask, self.pattern)]
        return leaks(after, names) + [Problem(name, f"its mask is not {self.config.pattern}") for name in broken]

    def _masked(
        self, graph: ModelGraph, names: list[str], context: StageContext
    ) -> tuple[Mapping[str, Tensor], ModelGraph]:
        """Masks by weight, and the graph with them."""
        if self.config.score == "magnitude":
            masks = {name: self._mask_by_size(graph, name) for name in names}
            return masks, mask_weights(graph, self.config.pattern, masks)
        self._refuse_groups(graph, names)
        chosen: dict[str, Tensor] = {}

        def solve(name: str, weight: Tensor, curvature: Curvature) -> Tensor:
            mask, result = SOLVERS[self.config.score](weight, curvature, self.pattern)
            chosen[name] = mask.view(graph.parameters()[name].shape)
            return result

        calibration = context.data.calibration
        calibration = calibration.balanced(images_at_once(graph, len(calibration), COPIES))
        images = torch.cat([batch for batch, _ in calibration.batches(BATCH)])
        joint = names if self.config.score in JOINT else ()
        several = joint and graph.source.classes > 1  # a single class is certain, whatever its logit
        draws = math.ceil(GRADIENTS / len(images)) if several else 0
        solver = LayerSolver(images, context.progress, f"two-four: {self.config.score}", joint=joint, draws=draws)
        solved = solver(graph, names, solve)
        return chosen, mask_weights(solved, self.config.pattern, chosen)

    def _refuse_groups(self, graph: ModelGraph, names: list[str]) -> None:
        """Raise StageError for a layer whose outputs do not all read the same inputs: it has no one gram matrix."""
        inputs = {weight: argument(nodes[0], 6, "groups", 1) for weight, nodes in layer_nodes(graph.module).items()}
        if grouped := [name for name in names if inputs[name] != 1]:
            message = f"score {self.config.score} cannot judge {grouped[0]}, a convolution in groups"
            raise StageError(message, "use `score: magnitude`, or name other layers in `layers`")

    def _mask_by_size(self, graph: ModelGraph, name: str) -> Tensor:
        weight = graph.parameters()[name].detach()
        return pattern_mask(weight.abs().flatten(start_dim=1), self.pattern).view(weight.shape)

    def _eligible(self, sketch: ModelSketch) -> list[SketchLinear]:
        chosen = chosen_layers(self.config.layers, sketch)
        return [layer for layer in chosen if not obstacles(layer.out_features, layer.in_features, self.pattern)]

    def _unfit(self, sketch: ModelSketch) -> list[tuple[SketchLinear, str]]:
        """Layers that were asked for and do not divide, each with its reasons."""
        chosen = chosen_layers(self.config.layers, sketch)
        reasons = [(layer, obstacles(layer.out_features, layer.in_features, self.pattern)) for layer in chosen]
        return [(layer, reason) for layer, reason in reasons if reason]


def _kept(graph: ModelGraph, masks: Mapping[str, Tensor]) -> float:
    """Share of the magnitude of all masked layers that lies inside their masks."""
    sums = [magnitudes(graph.parameters()[name], mask) for name, mask in masks.items()]
    kept, total = (sum(part) for part in zip(*sums, strict=True))
    return kept / total if total else 1.0
