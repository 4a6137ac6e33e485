"""The check that structural pruning makes before it cuts: permuting the axes must not change the outputs."""

from __future__ import annotations

from math import isfinite

from vitslim.errors import Problem, StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import ModelSketch
from vitslim.graph.verify import verify_axes


def verified_error(graph: ModelGraph) -> float:
    """Permute every prunable axis and return the largest relative error of the outputs.

    Raises StageError when the outputs change or are not finite.
    """
    found = verify_axes(graph)
    if not isfinite(found.max_error):
        raise StageError("the model's outputs are not finite", "check the weights in model.checkpoint")
    if not found.holds:
        raise StageError(
            f"the axes of {graph.source.timm} are not inferred correctly: permuting them changes its outputs by "
            f"{found.max_error:.1e}",
            "`vitslim axes --verify` shows which axis is wrong",
        )
    return found.max_error


def float_and_dense(sketch: ModelSketch, method: str) -> list[Problem]:
    """Return a problem for a model that is quantized, or has masks."""
    if sketch.bits:
        return [Problem("", "structural pruning must come before quantize", "move `prune` before `quantize`")]
    if sketch.sparsity:
        message = "structural pruning would break the sparsity pattern of the weights"
        return [Problem("", message, f"move `{method}` before the stage that masks weights")]
    return []
