"""Patch embeddings that read pixels instead of the normalized image: multiples of 1/255, which INT8 stores exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import is_patch_convolution
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, parameter_of, tensor_of

aten = torch.ops.aten
PIXEL_PREFIX = "vitslim.p."
PIXEL_BITS = 8
PIXEL = 1 / 255
"""Scale of 8-bit pixels; black is 0 and white is 1."""
MIDDLE = 128 * PIXEL
"""The pixel whose signed integer is 0."""


@dataclass(frozen=True)
class ReadPixels(Edit):
    """These layers read pixels instead of the normalized image; their weights compensate for it."""

    weights: tuple[str, ...]

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert constants for mean 0 and deviation 1; their values are loaded with the weights."""
        return read_pixels(graph, self.weights)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ReadPixels:
        """Rebuild the edit."""
        return cls(tuple(fields["weights"]))


def reads_pixels(node: Node, weight: Tensor) -> bool:
    """Whether a layer can read pixels: a convolution with a bias over non-overlapping patches of the image."""
    image, bias = argument(node, 0), argument(node, 2)
    return image.op == "placeholder" and parameter_of(bias) != "" and is_patch_convolution(node, weight)


def read_pixels(
    graph: ModelGraph, weights: Sequence[str], mean: Sequence[float] = (), std: Sequence[float] = ()
) -> ModelGraph:
    """Return a new graph with the same outputs, in which these layers read `pixel - MIDDLE`.

    Images are `(pixel - mean) / std` per channel; the graph inverts this, and the weights and biases compensate for
    it. Without mean and std they are 0 and 1, to be loaded later with the weights. Raises StageError for a weight
    whose layer does not read non-overlapping patches of the image.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    for weight in weights:
        nodes = layers.get(weight, ())
        if not nodes or not all(reads_pixels(node, tensor_of(new.module, weight)) for node in nodes):
            raise StageError(f"no layer with a weight '{weight}' reads patches of the image", closest(weight, layers))
        _fold(new, nodes[0], weight, mean, std)
        for node in nodes:
            with new.module.graph.inserting_before(node):
                factor, shift = (new.module.graph.get_attr(_name(weight, leaf)) for leaf in ("factor", "shift"))
                scaled = new.module.graph.call_function(aten.mul.Tensor, (node.args[0], factor))
                node.update_arg(0, new.module.graph.call_function(aten.add.Tensor, (scaled, shift)))
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, ReadPixels(tuple(weights)))
    return new


def pixel_layers(graph: ModelGraph) -> frozenset[str]:
    """Names of the weights of layers that read pixels."""
    return frozenset(weight for edit in graph.edits if isinstance(edit, ReadPixels) for weight in edit.weights)


def _name(weight: str, leaf: str) -> str:
    return f"{PIXEL_PREFIX}{layer_of(weight)}.{leaf}"


def _fold(graph: ModelGraph, node: Node, weight: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Fold the normalization into weight and bias; store the buffers (channels, 1, 1) that turn images into pixels."""
    module, channels = graph.module, graph.source.image[0]
    factor = torch.tensor(std or [1.0] * channels, dtype=torch.float64).reshape(-1, 1, 1)
    shift = torch.tensor(mean or [0.0] * channels, dtype=torch.float64).reshape(-1, 1, 1) - MIDDLE
    matrix, bias = tensor_of(module, weight), tensor_of(module, parameter_of(argument(node, 2)))
    with torch.no_grad():
        for_pixels = matrix.double() / factor
        matrix.copy_(for_pixels)
        bias.sub_((for_pixels * shift).sum(dim=(1, 2, 3)))
    holder = nn.Module()
    holder.register_buffer("factor", factor.to(matrix.dtype))
    holder.register_buffer("shift", shift.to(matrix.dtype))
    module.add_submodule(f"{PIXEL_PREFIX}{layer_of(weight)}", holder)
