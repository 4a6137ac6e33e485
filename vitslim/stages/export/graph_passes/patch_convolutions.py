"""Rewrite non-overlapping patch-embedding convolutions as matrix multiplications.

ONNX Runtime has integer kernels for matmuls only, and computes a quantized convolution in float.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from vitslim.graph.anatomy import is_patch_convolution
from vitslim.graph.axes.tensor_shapes import BATCH, tensor_shapes
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of
from vitslim.graph.ops.fake_quant import DYNAMIC_FAKE_QUANT, FAKE_QUANT

aten = torch.ops.aten


def rewrite_patch_convolutions(graph: ModelGraph) -> None:
    """In place: quantized convolutions whose windows do not overlap become linear layers.

    Their weights (out, in, height, width) become (out, in * height * width). Convolutions stay where the windows do not
    cover the whole image.
    """
    module = graph.module
    shapes = tensor_shapes(module, graph.source.image)
    for name, layers in layer_nodes(module).items():
        weight = tensor_of(module, name)
        if all(_is_matmul(layer, weight, shapes[argument(layer, 0)]) for layer in layers):
            for layer in layers:
                _replace(layer, _patches(layer, weight, shapes[argument(layer, 0)]), shapes[layer])
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, nn.Parameter(weight.detach().flatten(start_dim=1)))
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _is_matmul(layer: Node, weight: Tensor, image: Any) -> bool:
    """Whether a layer multiplies quantized weights by quantized windows that tile the image."""
    quantized = is_op(argument(layer, 0), FAKE_QUANT, DYNAMIC_FAKE_QUANT) and is_op(argument(layer, 1), FAKE_QUANT)
    return (
        quantized
        and is_patch_convolution(layer, weight)
        and parameter_of(argument(layer, 2)) != ""
        and len(image) == weight.dim()
        and image[0] == BATCH
        and all(length % window == 0 for length, window in zip(image[2:], weight.shape[2:], strict=True))
    )


def _patches(layer: Node, weight: Tensor, image: tuple[int, ...]) -> Node:
    """Insert a linear layer that gives (batch, patches, out) for the input (batch, channels, height, width)."""
    graph, (_, channels, high, wide) = layer.graph, image
    window = tuple(weight.shape[2:])
    rows, columns = high // window[0], wide // window[1]
    quantizer = argument(layer, 0)
    with graph.inserting_before(layer):
        call: Any = graph.call_function
        windows = call(aten.reshape.default, (quantizer.args[0], (-1, channels, rows, window[0], columns, window[1])))
        ordered = call(aten.permute.default, (windows, (0, 2, 4, 1, 3, 5)))
        patches = call(aten.reshape.default, (ordered, (-1, rows * columns, channels * prod(window))))
        quantized = call(quantizer.target, (patches, *quantizer.args[1:]))
        found: Node = call(aten.linear.default, (quantized, *layer.args[1:3]))
    return found


def _replace(layer: Node, patches: Node, shape: tuple[int, ...]) -> None:
    """Let the users of (batch, out, rows, columns) read the patches, without a copy where they reorder them back."""
    graph, (_, out, rows, columns) = layer.graph, shape
    with graph.inserting_after(patches):
        transposed = graph.call_function(aten.transpose.int, (patches, 1, 2))
    with graph.inserting_after(transposed):
        restored = graph.call_function(aten.reshape.default, (transposed, (-1, out, rows, columns)))
    for user in list(layer.users):
        if is_op(user, aten.permute.default) and list(argument(user, 1)) == [0, 2, 3, 1]:
            user.target, user.args = aten.reshape.default, (patches, (-1, rows, columns, out))
            continue
        for reader in list(user.users) if is_op(user, aten.flatten.using_ints) and argument(user, 1) == 2 else ():
            if is_op(reader, aten.transpose.int) and reader.args[1:] in {(1, 2), (2, 1), (-1, -2), (-2, -1)}:
                reader.replace_all_uses_with(patches)
        user.replace_input_with(layer, restored)
