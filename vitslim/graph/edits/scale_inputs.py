"""Factors on the input channels of layers, which quantizers like to be of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.edits.records import ScaleInputs
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of

aten = torch.ops.aten
FACTOR_PREFIX = "vitslim.f."


def factor_name(weight: str) -> str:
    """Name of the buffer (in,) by which the input of the layer with this weight is multiplied."""
    return f"{FACTOR_PREFIX}{layer_of(weight)}.input_factor"


def scale_inputs(graph: ModelGraph, weights: Sequence[str], factors: Mapping[str, Tensor] | None = None) -> ModelGraph:
    """A new graph in which linear layers read their inputs times `factors`, and have weights that undo it.

    factors: weight name to float (in,), positive; what is missing is one, to be loaded later with the weights. Layers
    that read one tensor share a product, with the factors of the first: of equal ones runtimes would make one, and of
    the quantizers behind it, too. Raises StageError for a weight that no layer has.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    first: dict[Node, str] = {}
    products: dict[tuple[Node, str], Node] = {}
    for weight in weights:
        if weight not in layers:
            raise StageError(f"no layer has a weight '{weight}'", closest(weight, layers))
        tensor = tensor_of(new.module, weight)
        sources = dict.fromkeys(argument(node, 0) for node in layers[weight])
        owner = first.setdefault(next(iter(sources)), weight) if len(sources) == 1 else weight
        if owner == weight:
            _store(new.module, weight, (factors or {}).get(weight, torch.ones(tensor.shape[1])).to(tensor))
            products |= {(source, owner): _product(new.module, source, owner) for source in sources}
        with torch.no_grad():
            tensor.div_(tensor_of(new.module, factor_name(owner)))
        for node in layers[weight]:
            node.update_arg(0, products[argument(node, 0), owner])
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, ScaleInputs(tuple(weights)))
    return new


def _store(module: GraphModule, weight: str, factor: Tensor) -> None:
    owner, _, leaf = factor_name(weight).rpartition(".")
    module.add_submodule(owner, nn.Module())
    module.get_submodule(owner).register_buffer(leaf, factor)


def _product(module: GraphModule, source: Node, weight: str) -> Node:
    """What a node gives, times the factors under this name."""
    with module.graph.inserting_after(source):
        factor = module.graph.get_attr(factor_name(weight))
    with module.graph.inserting_after(factor):
        return module.graph.call_function(aten.mul.Tensor, (source, factor))
