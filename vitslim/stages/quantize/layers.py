"""The layers of a model that are quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch.fx import GraphModule

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.edits.fake_quant import constant_layers, layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.graph.sketch import ModelSketch, SketchLinear

FIRST_LAST_ROLES = ("patch_embed", "head")
"""Roles of the first and the last layer of a model."""


def quantizable_layers(graph: ModelGraph, skip: Collection[str]) -> tuple[str, ...]:
    """Return the weights of the layers to quantize, in graph order: not skipped, and not the same for every image."""
    constant = constant_layers(graph.module)
    return _unskipped((weight for weight in layer_nodes(graph.module) if weight not in constant), skip)


def sketched_layers(sketch: ModelSketch, skip: Collection[str]) -> list[SketchLinear]:
    """Return the layers to quantize of a sketch."""
    chosen = set(_unskipped((linear.weight for linear in sketch.linears if not linear.constant), skip))
    return [linear for linear in sketch.linears if linear.weight in chosen]


def first_last_layers(graph: ModelGraph) -> frozenset[str]:
    """Return the weights of the patch embedding and the head."""
    return frozenset(layer.weight for layer in find_anatomy(graph).linears if layer.role in FIRST_LAST_ROLES)


def reads_image(module: GraphModule, weight: str) -> bool:
    """Return whether the input of a layer is the image itself.

    Such an activation stays in float unless it can be read as 8-bit pixels: quantizing the normalized image loses more
    fidelity than any other layer.
    """
    return any(argument(node, 0).op == "placeholder" for node in layer_nodes(module)[weight])


def _unskipped(weights: Iterable[str], skip: Collection[str]) -> tuple[str, ...]:
    names = {layer_of(name) for name in skip}
    return tuple(weight for weight in weights if layer_of(weight) not in names)
