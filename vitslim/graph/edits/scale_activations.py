"""Per-channel factors on input activations, so that all channels have similar ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of

aten = torch.ops.aten
FACTOR_PREFIX = "vitslim.f."


@dataclass(frozen=True)
class ScaleActivations(Edit):
    """Input activations of these layers are multiplied per channel; the weights compensate for the factors."""

    weights: tuple[str, ...]

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert factors of one; their values are loaded with the weights."""
        return scale_activations(graph, self.weights)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ScaleActivations:
        """Rebuild the edit."""
        return cls(tuple(fields["weights"]))


def factor_name(weight: str) -> str:
    """Name of the buffer (in,) that multiplies the input activation of the layer with this weight."""
    return f"{FACTOR_PREFIX}{layer_of(weight)}.input_factor"


def scale_activations(
    graph: ModelGraph, weights: Sequence[str], factors: Mapping[str, Tensor] | None = None
) -> ModelGraph:
    """Return a new graph with the same outputs, whose layers read `x * factor` and have weights divided by the factor.

    factors: weight name to float (in,), positive; missing factors are one, to be loaded later with the weights. Layers
    that read the same tensor share one multiplication, with the factors of the first: runtimes would merge equal
    multiplications and then no longer fuse the quantizers after them. Raises StageError for a weight that belongs to
    no layer.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    first: dict[Node, str] = {}
    scaled: dict[tuple[Node, str], Node] = {}
    for weight in weights:
        if weight not in layers:
            raise StageError(f"no layer has a weight '{weight}'", closest(weight, layers))
        tensor = tensor_of(new.module, weight)
        sources = dict.fromkeys(argument(node, 0) for node in layers[weight])
        owner = first.setdefault(next(iter(sources)), weight) if len(sources) == 1 else weight
        if owner == weight:
            _store(new.module, weight, (factors or {}).get(weight, torch.ones(tensor.shape[1])).to(tensor))
            scaled |= {(source, owner): _multiply(new.module, source, owner) for source in sources}
        with torch.no_grad():
            tensor.div_(tensor_of(new.module, factor_name(owner)))
        for node in layers[weight]:
            node.update_arg(0, scaled[argument(node, 0), owner])
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, ScaleActivations(tuple(weights)))
    return new


def _store(module: GraphModule, weight: str, factor: Tensor) -> None:
    owner, _, leaf = factor_name(weight).rpartition(".")
    module.add_submodule(owner, nn.Module())
    module.get_submodule(owner).register_buffer(leaf, factor)


def _multiply(module: GraphModule, source: Node, weight: str) -> Node:
    """Insert the multiplication of a node's result by the factors that belong to a weight."""
    with module.graph.inserting_after(source):
        factor = module.graph.get_attr(factor_name(weight))
    with module.graph.inserting_after(factor):
        return module.graph.call_function(aten.mul.Tensor, (source, factor))
