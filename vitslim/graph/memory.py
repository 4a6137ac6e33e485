"""Batch sizes that keep the activations of a graph within a memory limit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

from torch.fx import GraphModule, Interpreter, Node

from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.model_graph import ModelGraph, ModelSource

MEMORY_BYTES = 4 * 2**30
"""Memory limit of the activations of one pass."""
FLOAT_BYTES = 4
OUTPUT_BYTES = 2**28
"""Memory limit of the outputs that a stage keeps of many images."""


def outputs_at_once(source: ModelSource, most: int) -> int:
    """Return the largest number of images up to `most` whose outputs fit into OUTPUT_BYTES; at least 2."""
    needed = FLOAT_BYTES * sum(map(prod, source.outputs.values()))
    return min(most, max(2, OUTPUT_BYTES // max(needed, 1)))


def images_at_once(graph: ModelGraph, most: int, backward: bool = False) -> int:
    """Return the largest batch size up to `most` whose activations fit into MEMORY_BYTES; at least 1.

    Each tensor is held until its last use, for a backward pass until the end.
    """
    sizes = _bytes_an_image(graph)
    needed = sum(sizes.values()) if backward else _peak(graph.module, sizes)
    return max(1, min(most, MEMORY_BYTES // max(needed, 1)))


def images_held(graph: ModelGraph, nodes: Collection[Node], most: int) -> int:
    """Return the largest number of images up to `most` whose activations fit into MEMORY_BYTES; at least 1.

    Of all images the activations are held that one of the `nodes` or later nodes read.
    """
    sizes, last_uses = _bytes_an_image(graph), Interpreter(graph.module).user_to_last_uses
    held = needed = 0
    for node in graph.module.graph.nodes:
        needed = max(needed, held if node in nodes else 0)
        held += sizes.get(node, 0) - sum(sizes.get(done, 0) for done in last_uses.get(node, []))
    return max(1, min(most, MEMORY_BYTES // max(needed, 1)))


def _bytes_an_image(graph: ModelGraph) -> Mapping[Node, int]:
    shapes = tensor_shapes(graph.module, graph.source.image)
    return {node: FLOAT_BYTES * sum(map(_elements, _several(shape))) for node, shape in shapes.items()}


def _several(shape: Any) -> list[tuple[int, ...]]:
    return shape if isinstance(shape, list) else [shape]


def _elements(shape: tuple[int, ...]) -> int:
    """Number of elements for one image; 0 for tensors without a batch."""
    elements = prod(shape)
    return 0 if elements % BATCH else elements // BATCH


def _peak(module: GraphModule, sizes: Mapping[Node, int]) -> int:
    last_uses = Interpreter(module).user_to_last_uses
    held = most = 0
    for node in module.graph.nodes:
        held += sizes.get(node, 0)
        most = max(most, held)
        held -= sum(sizes.get(done, 0) for done in last_uses.get(node, []))
    return most
