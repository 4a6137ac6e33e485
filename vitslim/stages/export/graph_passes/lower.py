"""Quantizers of a graph in the form that a file stores: integer weights, and inputs as the profile wants them.

What the graph computes stays: codes of weights and inputs are those of its fake quantizers.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.graph.edits.fake_quant import integer_weights, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of
from vitslim.graph.ops.dequantize import dequantize
from vitslim.graph.ops.fake_quant import DYNAMIC_FAKE_QUANT, FAKE_QUANT
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.graph_passes.patches import patches_as_rows
from vitslim.stages.export.graph_passes.rows import work_on_rows
from vitslim.units import container_bits

aten = torch.ops.aten

DEQUANTIZE = dequantize._opoverload

Target = Literal["portable", "ort-cpu", "fp16"]
"""`portable`: zero points are 0 and weights are dequantized, as TensorRT and OpenVINO read them. `ort-cpu`: the forms
that ONNX Runtime is fastest with. `fp16`: a float model in half precision."""


class Form(Enum):
    """How a file turns the codes of a weight into what the product takes."""

    DEQUANTIZE = "DequantizeLinear, which runtimes fuse into the product behind it"
    WIDEN = "INT4 codes become INT8 at load and go on as such"
    MULTIPLY = "a product with the scales at load: the weight is float from then on"


class Stored(NamedTuple):
    """How a file holds a weight."""

    bits: int
    """Of the codes."""
    form: Form
    block: int = 0
    """Weights that share a whole number, which is stored beside codes of `bits` bits; 0: there are none."""


def lower_quantizers(graph: ModelGraph, target: Target) -> dict[str, Stored]:
    """In place: weights become INT8 codes. For `portable` unsigned inputs become signed ones about zero, for `ort-cpu`
    signed ones become unsigned ones about the middle.

    Returns how the file is to hold each quantized weight, by name.
    """
    module, sites = graph.module, quantizer_sites(graph)
    found = {}
    patches_as_rows(graph)
    if target == "ort-cpu":
        work_on_rows(graph)
    for weight, nodes in layer_nodes(module).items():
        quantizer: Any = nodes[0].args[1]
        if not is_op(quantizer, FAKE_QUANT):
            continue
        for node in nodes:
            (_sign_input if target == "portable" else _unsign_input)(module, node)
        bits = sites[weight].weight_bits
        block = sites[weight].group_size if sites[weight].integer_scales else 0
        found[weight] = Stored(bits, _form(nodes, target, bits), block)
        _store_codes(module, weight, quantizer)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return found


def _form(nodes: tuple[Node, ...], target: Target, bits: int) -> Form:
    quantizer: Any = nodes[0].args[1]
    if target == "portable" or quantizer.args[6]:
        return Form.DEQUANTIZE
    integer_product = all(
        is_op(node, aten.linear.default) and is_op(node.args[0], FAKE_QUANT, DYNAMIC_FAKE_QUANT) for node in nodes
    )
    if not integer_product:
        return Form.MULTIPLY
    return Form.WIDEN if container_bits(bits) == 4 else Form.DEQUANTIZE


def _store_codes(module: GraphModule, weight: str, quantizer: Node) -> None:
    """Replace a float weight by its codes, under the same name."""
    _, scale, _, axis, _, _, block, *zeros = quantizer.args
    _put(module, weight, integer_weights(module, quantizer))
    for one in zeros:
        _put(module, parameter_of(one), tensor_of(module, parameter_of(one)))
    with module.graph.inserting_before(quantizer):
        stored = module.graph.call_function(DEQUANTIZE, (quantizer.args[0], scale, axis, block, *zeros))
    quantizer.replace_all_uses_with(stored)
    module.graph.erase_node(quantizer)


def _put(module: GraphModule, name: str, codes: Tensor) -> None:
    """Codes, as int8, in the place of a parameter or buffer."""
    owner, _, leaf = name.rpartition(".")
    holder: nn.Module = module.get_submodule(owner)
    delattr(holder, leaf)
    holder.register_buffer(leaf, codes.to(torch.int8))


def _sign_input(module: GraphModule, layer: Node) -> None:
    """Codes 0 to 255 about a zero point become codes -128 to 127 of the input less a constant.

    The bias makes up for the constant. Behind a convolution that pads with zeros it could not: such an input stays.
    """
    quantizer: Any = layer.args[0]
    if not is_op(quantizer, FAKE_QUANT) or quantizer.args[4] != 0 or _pads(layer):
        return
    x, scale, zero_point, _, _, qmax, _ = quantizer.args
    half = (qmax + 1) // 2
    step = float(tensor_of(module, parameter_of(scale)).detach())
    constant = step * (half - zero_point)
    graph = module.graph
    with graph.inserting_before(quantizer):
        moved = graph.call_function(aten.sub.Tensor, (x, constant))
        signed = graph.call_function(FAKE_QUANT, (moved, scale, 0, None, -half, half - 1, 0))
    layer.replace_input_with(quantizer, signed)
    _add_to_bias(module, layer, _row_sums(module, layer) * constant)


def _unsign_input(module: GraphModule, layer: Node) -> None:
    """Codes about 0 become codes from 0 on, of the same numbers: ONNX Runtime has its fast products for these alone."""
    quantizer: Any = layer.args[0]
    if is_op(quantizer, FAKE_QUANT) and quantizer.args[4] < 0:
        x, scale, zero_point, axis, qmin, qmax, block = quantizer.args
        with module.graph.inserting_before(quantizer):
            unsigned = module.graph.call_function(
                FAKE_QUANT, (x, scale, zero_point - qmin, axis, 0, qmax - qmin, block)
            )
        layer.replace_input_with(quantizer, unsigned)


def _pads(layer: Node) -> bool:
    if is_op(layer, aten.linear.default):
        return False
    padding = argument(layer, 4, "padding", 0)
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _row_sums(module: GraphModule, layer: Node) -> Tensor:
    """What each output adds up of an input of ones: float (out,)."""
    quantizer: Any = layer.args[1]
    weight = tensor_of(module, parameter_of(quantizer))
    scale = tensor_of(module, parameter_of(quantizer.args[1]))
    with torch.no_grad():
        values: Tensor = FAKE_QUANT(weight, scale, *quantizer.args[2:])
    return values.double().flatten(start_dim=1).sum(dim=1)


def _add_to_bias(module: GraphModule, layer: Node, added: Tensor) -> None:
    bias = argument(layer, 2)
    with torch.no_grad():
        if isinstance(bias, Node) and bias.op != "get_attr":
            with module.graph.inserting_before(layer):
                constant = _constant(module, layer, added.float())
                new = module.graph.call_function(aten.add.Tensor, (bias, constant))
        else:
            old = tensor_of(module, parameter_of(bias)).double() if bias is not None else 0.0
            with module.graph.inserting_before(layer):
                new = _constant(module, layer, (added + old).float())
    layer.args = (*layer.args[:2], new, *layer.args[3:])


def _constant(module: GraphModule, layer: Node, value: Tensor) -> Node:
    """A tensor beside the layer's weight: `blocks.0.mlp.fc2.shifted_bias`."""
    owner = parameter_of(layer.args[1]).rpartition(".")[0]
    holder: nn.Module = module.get_submodule(owner)
    number = sum(name.startswith("shifted_bias") for name, _ in holder.named_buffers(recurse=False))
    name = f"shifted_bias{number or ''}"
    holder.register_buffer(name, value)
    return module.graph.get_attr(f"{owner}.{name}".lstrip("."))
