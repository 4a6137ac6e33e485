"""Factors on the input channels of layers, which quantisers like to be of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitslim.errors import StageError, closest
from vitslim.graph.edits import ScaleInputs
from vitslim.graph.insert_fake_quant import layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of

aten = torch.ops.aten
FACTOR_PREFIX = "vitslim.f."


def factor_name(weight: str) -> str:
    """Name of the buffer (in,) by which the input of the layer with this weight is multiplied."""
    return f"{FACTOR_PREFIX}{layer_of(weight)}.input_factor"


def scale_inputs(graph: ModelGraph, weights: Sequence[str], factors: Mapping[str, Tensor] | None = None) -> ModelGraph:
    """A new graph in which linear layers read their inputs times `factors`, and have weights that undo it.

    factors: weight name to float (in,), positive; what is missing is one, to be loaded later with the weights. Raises
    StageError for a weight that no layer has.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    for weight in weights:
        if weight not in layers:
            raise StageError(f"no layer has a weight '{weight}'", closest(weight, layers))
        tensor = tensor_of(new.module, weight)
        factor = (factors or {}).get(weight, torch.ones(tensor.shape[1])).to(tensor)
        with torch.no_grad():
            tensor.div_(factor)
        owner, _, leaf = factor_name(weight).rpartition(".")
        new.module.add_submodule(owner, nn.Module())
        new.module.get_submodule(owner).register_buffer(leaf, factor)
        for node in layers[weight]:
            with new.module.graph.inserting_before(node):
                operands = node.args[0], new.module.graph.get_attr(factor_name(weight))
                node.update_arg(0, new.module.graph.call_function(aten.mul.Tensor, operands))
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, ScaleInputs(tuple(weights)))
    return new
