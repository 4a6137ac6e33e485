"""Fake quantisers on the input and the weight of linears and convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import LAYER_OPS
from vitslim.graph.attention import parameter_of
from vitslim.graph.edits import FakeQuantSite, InsertFakeQuant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op, tensor_of
from vitslim.graph.ops.fake_quant import integer_range

FAKE_QUANT = torch.ops.vitslim.fake_quant.default
QUANTISER_PREFIX = "vitslim.q."
_OUTPUT_AXIS = 0
"""Output channels are the first dimension of the weight of a linear and of a convolution alike."""


def layer_of(weight: str) -> str:
    """The layer that a weight belongs to: `head.weight` gives `head`; other names stay as they are."""
    return weight.removesuffix(".weight")


def input_scale_name(weight: str) -> str:
    """Name of the parameter of shape () that scales the input of the layer with this weight."""
    return f"{QUANTISER_PREFIX}{layer_of(weight)}.input_scale"


def weight_scale_name(weight: str) -> str:
    """Name of the parameter of shape (output channels,) that scales this weight."""
    return f"{QUANTISER_PREFIX}{layer_of(weight)}.weight_scale"


def layer_nodes(module: GraphModule) -> dict[str, tuple[Node, ...]]:
    """Weight parameter name to the linears and convolutions that use it, quantised or not, in graph order."""
    found: dict[str, tuple[Node, ...]] = {}
    for node in module.graph.nodes:
        weight = parameter_of(node.args[1]) if is_op(node, *LAYER_OPS) else ""
        if weight:
            found[weight] = (*found.get(weight, ()), node)
    return found


def quantised_layers(module: GraphModule) -> frozenset[str]:
    """Names of the weights that have fake quantisers."""
    return frozenset(weight for weight, nodes in layer_nodes(module).items() if is_op(nodes[0].args[1], FAKE_QUANT))


def insert_fake_quant(
    graph: ModelGraph, sites: Sequence[FakeQuantSite], scales: Mapping[str, Tensor] | None = None
) -> ModelGraph:
    """A new graph whose layers at `sites` see quantised inputs (per tensor) and weights (per output channel).

    scales: parameter name, as `input_scale_name` and `weight_scale_name` give it, to scale; what is missing starts
    at one, to be loaded later. Zero points are 0. Raises StageError for a weight that no layer has, that is given
    twice or is already quantised.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    taken = set(quantised_layers(new.module))
    for site in sites:
        if site.weight not in layers:
            raise StageError(f"no layer has a weight '{site.weight}'", closest(site.weight, layers))
        if site.weight in taken:
            raise StageError(f"'{site.weight}' is already quantised", "list each weight in one quantize stage")
        taken.add(site.weight)
        _attach(new.module, site, scales or {})
        _quantise_operands(new.module, layers[site.weight], site)
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, InsertFakeQuant(tuple(sites)))
    return new


def _attach(module: GraphModule, site: FakeQuantSite, scales: Mapping[str, Tensor]) -> None:
    """Add the two scales of a site as parameters."""
    weight = tensor_of(module, site.weight)
    holder = nn.Module()
    shapes: dict[str, tuple[int, ...]] = {
        input_scale_name(site.weight): (),
        weight_scale_name(site.weight): (weight.shape[_OUTPUT_AXIS],),
    }
    for name, shape in shapes.items():
        value = scales[name].detach().clone() if name in scales else torch.ones(shape)
        if value.shape != shape:
            raise StageError(f"'{name}' has shape {tuple(value.shape)}, expected {shape}")
        holder.register_parameter(name.rpartition(".")[2], nn.Parameter(value.to(weight)))
    module.add_submodule(QUANTISER_PREFIX + layer_of(site.weight), holder)


def _quantise_operands(module: GraphModule, nodes: tuple[Node, ...], site: FakeQuantSite) -> None:
    """Quantise the input of each layer that uses the weight, and the weight once for all of them."""
    graph = module.graph
    with graph.inserting_before(nodes[0]):
        scale = graph.get_attr(weight_scale_name(site.weight))
        weight_range = integer_range(site.weight_bits, narrow=True)
        weight = graph.call_function(FAKE_QUANT, (nodes[0].args[1], scale, 0, _OUTPUT_AXIS, *weight_range, 0))
    for node in nodes:
        with graph.inserting_before(node):
            scale = graph.get_attr(input_scale_name(site.weight))
            input_range = integer_range(site.input_bits, narrow=False)
            x = graph.call_function(FAKE_QUANT, (node.args[0], scale, 0, None, *input_range, 0))
        node.args = (x, weight, *node.args[2:])
