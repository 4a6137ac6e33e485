"""Unstructured sparsity: masks of single weights. Reduces the stored size in sparse formats, not the latency."""

from __future__ import annotations

from torch import Tensor

from vitslim.errors import Problem, StageError
from vitslim.graph.edits.mask import mask_weights
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch, sketch
from vitslim.recipe.stages import Unstructured
from vitslim.results import LayerNote
from vitslim.sparsity import csr_bytes, unstructured_pattern, zeros
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.prune.layer_choice import chosen_layers, layer_problems
from vitslim.stages.prune.masks import magnitude_inside, mask_violations, masked_or_quantized
from vitslim.stages.prune.unstructured.magnitude import magnitude_masks
from vitslim.units import FLOAT_BITS, format_bytes, format_percent


class UnstructuredStage:
    """Runs `prune: {method: unstructured}`."""

    def __init__(self, config: Unstructured) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Require a float model without masks, existing layers, and at least one weight to remove."""
        problems = masked_or_quantized(sketch, "unstructured") or layer_problems(self.config.layers, sketch)
        if problems:
            return problems
        sizes = [layer.out_features * layer.in_features for layer in chosen_layers(self.config.layers, sketch)]
        if not sizes:
            return [Problem("layers", "this model has no layer to prune")]
        if not any(self._removed_counts(sizes)):
            return [Problem("sparsity", f"removes none of {sum(sizes)} weights", "raise sparsity")]
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Return the sketch with masks. Exact in total; with a global scope every layer gets the average sparsity."""
        names = [layer.weight for layer in chosen_layers(self.config.layers, sketch)]
        return sketch.with_sparsity(names, self._pattern)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002 - needs no data
        """Choose the masks and set the weights outside them to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        weights = graph.parameters()
        masks = self._masks({n.weight: weights[n.weight] for n in chosen_layers(self.config.layers, before)})
        found = list(masks.values())
        metrics = {
            "sparsity": 1 - sum(int(mask.sum()) for mask in found) / sum(mask.numel() for mask in found),
            "kept_magnitude": magnitude_inside(weights, masks),
            "layers": float(len(masks)),
            "dense_bytes": float(sum(map(_dense_bytes, found))),
            "csr_bytes": float(sum(map(_csr_bytes, found))),
        }
        changes = tuple(_note(name, mask) for name, mask in masks.items())
        return StageResult(mask_weights(graph, self._pattern, masks), changes, (), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Check that every chosen layer has a mask, with zeros outside it, and the number of removed weights."""
        names = [layer.weight for layer in chosen_layers(self.config.layers, sketch(before))]
        problems = mask_violations(after, names)
        if problems:
            return problems
        masks = [after.masks[name] for name in names]
        removed = sum(mask.numel() - int(mask.sum()) for mask in masks)
        expected = sum(self._removed_counts([mask.numel() for mask in masks]))
        return [] if removed == expected else [Problem("sparsity", f"removed {removed} weights, expected {expected}")]

    @property
    def _pattern(self) -> str:
        return unstructured_pattern(self.config.sparsity)

    def _removed_counts(self, sizes: list[int]) -> list[int]:
        """Return the number of weights to remove from each group that is ranked together."""
        groups = [sum(sizes)] if self.config.scope == "global" else sizes
        return [zeros(size, self.config.sparsity) for size in groups]

    def _masks(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        groups = [list(weights)] if self.config.scope == "global" else [[name] for name in weights]
        masks: dict[str, Tensor] = {}
        for names in groups:
            try:
                found = magnitude_masks([weights[name] for name in names], self.config.sparsity)
            except ValueError as error:
                raise StageError(f"cannot prune {names[0]}: {error}", "check model.checkpoint") from error
            masks |= dict(zip(names, found, strict=True))
        return masks


def _note(name: str, mask: Tensor) -> LayerNote:
    what = f"{format_percent(1 - int(mask.sum()) / mask.numel())} zero"
    sizes = f"CSR {format_bytes(_csr_bytes(mask))}, dense {format_bytes(_dense_bytes(mask))}"
    return LayerNote(layer=name, result=what, reason=sizes if mask.any() else f"{sizes}; all weights are zero")


def _dense_bytes(mask: Tensor) -> int:
    return mask.numel() * FLOAT_BITS // 8


def _csr_bytes(mask: Tensor) -> int:
    matrix = mask.flatten(start_dim=1)
    return csr_bytes(matrix.shape[0], matrix.shape[1], int(matrix.sum()), FLOAT_BITS)
