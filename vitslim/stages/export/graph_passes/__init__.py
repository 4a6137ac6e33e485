"""Passes over the graph before it becomes an ONNX file, in the order in which they run.

What the graph computes stays the same, except that dynamic quantizers see the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.formats.profiles import Profile
from vitslim.stages.export.graph_passes.activations import (
    fold_shifts,
    make_activations_signed,
    make_activations_unsigned,
)
from vitslim.stages.export.graph_passes.integer_weights import store_integer_weights
from vitslim.stages.export.graph_passes.matrices import flatten_to_matrices
from vitslim.stages.export.graph_passes.patch_convolutions import rewrite_patch_convolutions
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens


def _is_quantized(graph: ModelGraph, _profile: Profile) -> bool:
    return bool(quantized_layers(graph.module))


@dataclass(frozen=True)
class GraphPass:
    """A rewrite of a graph, in place."""

    purpose: str
    run: Callable[[ModelGraph], None]
    applies: Callable[[ModelGraph, Profile], bool] = _is_quantized
    """Whether the pass runs on this graph for this profile."""

    @property
    def name(self) -> str:
        """The name of its function."""
        return self.run.__name__


GRAPH_PASSES = (
    GraphPass(
        "remove the computation of unused tokens",
        remove_unused_tokens,
        lambda graph, profile: profile.optimized_float or _is_quantized(graph, profile),
    ),
    GraphPass("fold shifts of activations into biases", fold_shifts),
    GraphPass("turn quantized patch convolutions into linear layers", rewrite_patch_convolutions),
    GraphPass(
        "compute quantized linear layers, and row-wise operators between them, on matrices",
        flatten_to_matrices,
        lambda _graph, profile: profile.integer_gemms,
    ),
    GraphPass(
        "quantize activations to signed integers with a zero point of 0",
        make_activations_signed,
        lambda graph, profile: not profile.unsigned_activations and _is_quantized(graph, profile),
    ),
    GraphPass(
        "quantize activations to unsigned integers",
        make_activations_unsigned,
        lambda graph, profile: profile.unsigned_activations and _is_quantized(graph, profile),
    ),
    GraphPass("replace fake-quantized weights by INT8 constants", store_integer_weights),
    GraphPass("write attention as matmuls and a softmax", decompose_attention, lambda _graph, _profile: True),
)
"""Every pass, first to last."""


def run_graph_passes(graph: ModelGraph, profile: Profile) -> None:
    """Run each pass that applies, in place."""
    for one in GRAPH_PASSES:
        if one.applies(graph, profile):
            one.run(graph)
