"""Unstructured sparsity: single weights become zero and stay zero. Smaller where zeros are not stored, never faster."""

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
from vitslim.stages.prune.layer_names import chosen_layers, wrong_names
from vitslim.stages.prune.masks import leaks, unmasked_float
from vitslim.stages.prune.two_four.patterns import magnitudes
from vitslim.stages.prune.unstructured.magnitude import magnitude_masks
from vitslim.units import FLOAT_BITS, format_bytes, format_percent


class UnstructuredStage:
    """Carries out `prune: {method: unstructured}`. Dense kernels multiply by zero as fast as by any other number."""

    def __init__(self, config: Unstructured) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """A float model without a mask, layers that exist, and at least one weight to remove from each group."""
        problems = unmasked_float(sketch, "unstructured") or wrong_names(self.config.layers, sketch)
        if problems:
            return problems
        sizes = [layer.out_features * layer.in_features for layer in chosen_layers(self.config.layers, sketch)]
        if not sizes:
            return [Problem("layers", "this model has no layer to prune")]
        if not any(self._gone(sizes)):
            return [Problem("sparsity", f"no weight would go of {sum(sizes)}", "raise sparsity")]
        return []

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """Exact in total; with a global scope every layer is taken to have the average number of zeros."""
        names = [layer.weight for layer in chosen_layers(self.config.layers, sketch)]
        return sketch.with_sparsity(names, self._pattern)

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:  # noqa: ARG002 - needs no data
        """Choose the masks, once, and set the weights outside them to zero."""
        before = sketch(graph)
        for problem in self.requires(before):
            raise StageError(problem.message, problem.hint)
        weights = graph.parameters()
        masks = self._masks({n.weight: weights[n.weight] for n in chosen_layers(self.config.layers, before)})
        kept = total = 0.0
        for name, mask in masks.items():
            kept_here, total_here = magnitudes(weights[name], mask)
            kept, total = kept + kept_here, total + total_here
        counts = list(masks.values())
        metrics = {
            "sparsity": 1 - sum(int(mask.sum()) for mask in counts) / sum(mask.numel() for mask in counts),
            "kept_magnitude": kept / total if total else 1.0,
            "layers": float(len(masks)),
            "dense_bytes": float(sum(map(_dense_bytes, counts))),
            "csr_bytes": float(sum(map(_csr_bytes, counts))),
        }
        changes = tuple(_note(name, mask) for name, mask in masks.items())
        return StageResult(mask_weights(graph, self._pattern, masks), changes, (), metrics)

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every chosen layer has a mask, weights are zero outside it, and as many went as promised."""
        names = [layer.weight for layer in chosen_layers(self.config.layers, sketch(before))]
        problems = leaks(after, names)
        if problems:
            return problems
        masks = [after.masks[name] for name in names]
        gone = sum(mask.numel() - int(mask.sum()) for mask in masks)
        promised = sum(self._gone([mask.numel() for mask in masks]))
        return [] if gone == promised else [Problem("sparsity", f"{gone} weights went instead of {promised}")]

    @property
    def _pattern(self) -> str:
        return unstructured_pattern(self.config.sparsity)

    def _gone(self, sizes: list[int]) -> list[int]:
        """How many weights go from each group that is ranked together."""
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
    return LayerNote(layer=name, result=what, reason=sizes if mask.any() else f"{sizes}; no weight is left")


def _dense_bytes(mask: Tensor) -> int:
    return mask.numel() * FLOAT_BITS // 8


def _csr_bytes(mask: Tensor) -> int:
    matrix = mask.flatten(start_dim=1)
    return csr_bytes(matrix.shape[0], matrix.shape[1], int(matrix.sum()), FLOAT_BITS)
