"""Replace fake-quantized weights by the integers that a file stores."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.graph.edits.fake_quant import integer_weights, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op, parameter_of, tensor_of
from vitslim.graph.ops.dequantize import dequantize
from vitslim.graph.ops.fake_quant import DYNAMIC_FAKE_QUANT, FAKE_QUANT
from vitslim.graph.ops.float8 import FAKE_QUANT_FLOAT8, FLOAT8
from vitslim.recipe.formats.profiles import Profile
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.units import container_bits

aten = torch.ops.aten

DEQUANTIZE = dequantize._opoverload


class WeightForm(Enum):
    """Conversion of stored integers into the operand of a matmul."""

    DEQUANTIZE = "DequantizeLinear, which runtimes fuse into the matmul that reads it"
    WIDEN = "a cast from INT4 to INT8 at load, then DequantizeLinear"
    MULTIPLY = "a multiplication by the scales at load, so that the matmul has a float weight"


class WeightStorage(NamedTuple):
    """Storage of one quantized weight in a file."""

    bits: int
    """Bits of the stored integers."""
    form: WeightForm
    group_size: int = 0
    """Weights that share an integer group scale, which the file stores beside them; 0: there are no such scales."""


def store_integer_weights(graph: ModelGraph) -> None:
    """In place: quantized weights become INT8 or FLOAT8 constants under their old names, read by
    `vitslim::dequantize`."""
    module = graph.module
    for weight, nodes in layer_nodes(module).items():
        quantizer: Any = nodes[0].args[1]
        if is_op(quantizer, FAKE_QUANT):
            _store(module, weight, quantizer)
        elif is_op(quantizer, FAKE_QUANT_FLOAT8):
            _store_float8(module, weight, quantizer)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def weight_storage(graph: ModelGraph, profile: Profile) -> dict[str, WeightStorage]:
    """Return the storage of each weight of a graph after `store_integer_weights`, by name."""
    sites, found = quantizer_sites(graph), {}
    for node in graph.module.graph.nodes:
        if is_op(node, DEQUANTIZE):
            weight = str(node.args[0].target)
            site = sites[weight]
            form = _form(node, site.weight_bits, profile)
            found[weight] = WeightStorage(site.weight_bits, form, site.group_size if site.integer_scales else 0)
    return found


def _form(dequantized: Node, bits: int, profile: Profile) -> WeightForm:
    group_size = dequantized.args[3]
    if group_size or not profile.weights_at_load:
        return WeightForm.DEQUANTIZE
    if not all(_is_integer_matmul(layer) for layer in dequantized.users):
        return WeightForm.MULTIPLY
    return WeightForm.WIDEN if container_bits(bits) == 4 else WeightForm.DEQUANTIZE


def _is_integer_matmul(layer: Node) -> bool:
    return is_op(layer, aten.linear.default) and is_op(layer.args[0], FAKE_QUANT, DYNAMIC_FAKE_QUANT)


def _store(module: GraphModule, weight: str, quantizer: Node) -> None:
    _, scale, _, axis, _, _, group_size, *zero_points = quantizer.args
    _set_int8(module, weight, integer_weights(module, quantizer))
    for one in zero_points:
        _set_int8(module, parameter_of(one), tensor_of(module, parameter_of(one)))
    with module.graph.inserting_before(quantizer):
        stored = module.graph.call_function(DEQUANTIZE, (quantizer.args[0], scale, axis or 0, group_size, *zero_points))
    quantizer.replace_all_uses_with(stored)
    module.graph.erase_node(quantizer)


def _store_float8(module: GraphModule, weight: str, quantizer: Node) -> None:
    stored, scale, axis = quantizer.args
    _set_constant(module, weight, integer_weights(module, quantizer).to(FLOAT8))
    with module.graph.inserting_before(quantizer):
        values = module.graph.call_function(DEQUANTIZE, (stored, scale, axis, 0))
    quantizer.replace_all_uses_with(values)
    module.graph.erase_node(quantizer)


def _set_int8(module: GraphModule, name: str, values: Tensor) -> None:
    """Replace a parameter or a buffer by an INT8 buffer of the same name."""
    _set_constant(module, name, values.to(torch.int8))


def _set_constant(module: GraphModule, name: str, values: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    holder: nn.Module = module.get_submodule(owner)
    delattr(holder, leaf)
    holder.register_buffer(leaf, values)
