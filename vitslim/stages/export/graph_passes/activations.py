"""Rewrite the quantizers of activations to the integer type that a profile asks for.

The outputs of every layer stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.graph.anatomy.patches import has_padding
from vitslim.graph.edits.fake_quant import layer_nodes, shifted_quantizer
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of
from vitslim.graph.ops.fake_quant import FAKE_QUANT

aten = torch.ops.aten


def fold_shifts(graph: ModelGraph) -> None:
    """In place: fold the constant that is subtracted after a quantizer into the bias of the layer that reads it.

    Runtimes fuse a quantizer only with the layer that reads it directly. The constant stays before the quantizer.
    """
    for layer in _quantized_layers(graph.module):
        shifted: Any = layer.args[0]
        quantizer = shifted_quantizer(shifted)
        if quantizer is not None:
            layer.replace_input_with(shifted, quantizer)
            _add_to_bias(graph.module, layer, -argument(shifted, 1) * _row_sums(graph.module, layer))
    _finish(graph.module)


def make_activations_signed(graph: ModelGraph) -> None:
    """In place: subtract a constant from each input activation with unsigned integers, so that their range is signed
    and symmetric about a zero point of 0.

    Integers from 0 to 255 become integers from -128 to 127. The bias of the layer adds the effect of the constant. A
    convolution with zero padding keeps its unsigned input: no bias gives the right result at the borders.
    """
    for layer in _quantized_layers(graph.module):
        _make_signed(graph.module, layer)
    _finish(graph.module)


def make_activations_unsigned(graph: ModelGraph) -> None:
    """In place: shift signed integers and the zero point of each input activation, so that the smallest integer is 0.

    ONNX Runtime has its fastest integer kernels for unsigned activations.
    """
    for layer in _quantized_layers(graph.module):
        _make_unsigned(graph.module, layer)
    _finish(graph.module)


def _quantized_layers(module: GraphModule) -> Iterator[Node]:
    """Linears and convolutions with a quantized weight."""
    for nodes in layer_nodes(module).values():
        if is_op(nodes[0].args[1], FAKE_QUANT):
            yield from nodes


def _finish(module: GraphModule) -> None:
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _make_signed(module: GraphModule, layer: Node) -> None:
    quantizer: Any = layer.args[0]
    if not is_op(quantizer, FAKE_QUANT) or quantizer.args[4] != 0 or has_padding(layer):
        return
    x, scale, zero_point, _, _, qmax, _ = quantizer.args
    half = (qmax + 1) // 2
    constant = float(tensor_of(module, parameter_of(scale)).detach()) * (half - zero_point)
    graph = module.graph
    with graph.inserting_before(quantizer):
        shifted = graph.call_function(aten.sub.Tensor, (x, constant))
        signed = graph.call_function(FAKE_QUANT, (shifted, scale, 0, None, -half, half - 1, 0))
    layer.replace_input_with(quantizer, signed)
    _add_to_bias(module, layer, _row_sums(module, layer) * constant)


def _make_unsigned(module: GraphModule, layer: Node) -> None:
    quantizer: Any = layer.args[0]
    if is_op(quantizer, FAKE_QUANT) and quantizer.args[4] < 0:
        x, scale, zero_point, axis, qmin, qmax, group_size = quantizer.args
        with module.graph.inserting_before(quantizer):
            unsigned = module.graph.call_function(
                FAKE_QUANT, (x, scale, zero_point - qmin, axis, 0, qmax - qmin, group_size)
            )
        layer.replace_input_with(quantizer, unsigned)


def _row_sums(module: GraphModule, layer: Node) -> Tensor:
    """Sum of the fake-quantized weight over its reduction: float64 (out,)."""
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
    """Add a buffer beside the weight of a layer, such as `blocks.0.mlp.fc2.shifted_bias`."""
    owner = parameter_of(layer.args[1]).rpartition(".")[0]
    holder: nn.Module = module.get_submodule(owner)
    number = sum(name.startswith("shifted_bias") for name, _ in holder.named_buffers(recurse=False))
    name = f"shifted_bias{number or ''}"
    holder.register_buffer(name, value)
    return module.graph.get_attr(f"{owner}.{name}".lstrip("."))
