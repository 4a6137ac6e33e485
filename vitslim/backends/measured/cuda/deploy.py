"""Deployment of a saved graph on a GPU: FP16, with INT8 kernels for quantized and 2:4 kernels for sparse layers.

cuBLAS multiplies dense weights, cuSPARSELt 2:4 weights. A quantized layer without an integer kernel runs in FP16 with
its dequantized weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vitslim.backends.measured.cuda.linears import Int8Linear, TwoFourLinear
from vitslim.graph.device import set_constant_device
from vitslim.graph.edits import Mask, QuantizeAttention
from vitslim.graph.edits.fake_quant import bypass_quantizers, layer_nodes
from vitslim.graph.edits.scale_activations import FACTOR_PREFIX
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, tensor_of, tensors_of
from vitslim.graph.ops.fake_quant import DYNAMIC_FAKE_QUANT, FAKE_QUANT, to_integers
from vitslim.graph.ops.float8 import FAKE_QUANT_FLOAT8
from vitslim.results import TwoFourLayer
from vitslim.results.two_four import Status
from vitslim.sparsity import PAIRS, TWO_FOUR

aten = torch.ops.aten
SPARSE_TILES = {torch.int8: (32, 128), torch.float16: (32, 64)}
"""Outputs and inputs of a 2:4 weight must be multiples of these (torch/sparse/semi_structured.py)."""


def deploy(graph: ModelGraph, device: str) -> tuple[GraphModule, dict[str, str]]:
    """Return a copy of a graph on a device, and the kernel of every layer by the name of its weight.

    Kernels are `int8`, `int8 2:4`, `float` and `float 2:4`. Attention always runs in float; where it was quantized, the
    key `blocks.0.attention` lists it. A GPU computes in FP16, a CPU in FP32 and without 2:4 kernels.
    """
    module, kernels = graph.copy().module, dict[str, str]()
    on_gpu = device.startswith("cuda")
    sparse = {n for e in graph.edits if isinstance(e, Mask) and e.pattern == TWO_FOUR for n in e.parameters}
    packing: list[Callable[[], None]] = []
    for name, nodes in layer_nodes(module).items():
        for node in nodes:
            layer: Int8Linear | TwoFourLinear | None = _int8(module, node, name)
            kind = torch.float16 if layer is None else torch.int8
            two_four = on_gpu and name in sparse and not _obstacle(node, tensor_of(module, name), kind)
            kernels[name] = ("float" if layer is None else "int8") + (" 2:4" if two_four else "")
            if layer is None:
                _in_float(module, node, name)
                layer = _two_four(module, node, name) if two_four else None
            if layer is not None:
                _put(module, node, layer)
                packing += [layer.pack] if two_four else []
    blocks = (name for edit in graph.edits if isinstance(edit, QuantizeAttention) for name in edit.blocks)
    kernels |= dict.fromkeys(map("{}.attention".format, blocks), "float")
    bypass_quantizers(module)  # those of attention matmuls, which run in float
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    move_tensors(module, device, torch.float16 if on_gpu else torch.float32)
    for pack in packing:
        pack()
    return module.eval(), kernels


def _int8(module: GraphModule, node: Node, name: str) -> Int8Linear | None:
    """Return the integer form of a layer with static quantizers of input and weight; None for any other layer."""
    x, quantized = _operands(node)[:2]
    if not (is_op(node, aten.linear.default) and is_op(x, FAKE_QUANT) and is_op(quantized, FAKE_QUANT)):
        return None
    weight, tensors = tensor_of(module, name).detach(), tensors_of(module)
    _, scale, _, axis, low, high, group_size = _operands(quantized)
    _, input_scale, zero_point, _, least, most, _ = _operands(x)
    if group_size:
        return None
    scale, input_scale = (tensors[one.target].detach() for one in (scale, input_scale))
    integers = to_integers(weight, scale, axis, low, high).to(torch.int8)
    scale = scale.expand(len(integers))  # a scale of the whole weight, or one for each channel
    bias, factor = argument(node, 2), _factor(_operands(x)[0])
    return Int8Linear(
        integers,
        scale,
        input_scale,
        zero_point,
        (least, most),
        tensors[bias.target].detach() if bias is not None else None,
        tensors[str(factor.target)].detach() if factor is not None else None,
    )


def _factor(node: Node) -> Node | None:
    """Return the smoothing factor by which a node multiplies the input channels; None for any other node."""
    if not is_op(node, aten.mul.Tensor):
        return None
    by = _operands(node)[1]
    return by if isinstance(by, Node) and str(by.target).startswith(FACTOR_PREFIX) else None


def _two_four(module: GraphModule, node: Node, name: str) -> TwoFourLinear:
    bias = argument(node, 2)
    weight = tensor_of(module, name).detach()
    return TwoFourLinear(weight, tensors_of(module)[bias.target].detach() if bias is not None else None)


def _put(module: GraphModule, node: Node, layer: nn.Module) -> None:
    """Replace a node by a layer. An integer layer reads the input of the quantizer, before smoothing factors."""
    name = f"vitslim_{node.name}"
    module.add_submodule(name, layer)
    x = _operands(node)[0]
    if isinstance(layer, Int8Linear):
        x = _operands(x)[0]
        x = x if _factor(x) is None else _operands(x)[0]
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (x,))
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _in_float(module: GraphModule, node: Node, name: str) -> None:
    """Replace the weight by its dequantized values, and remove the quantizers of weight and input."""
    x, weight, *rest = _operands(node)
    if is_op(weight, FAKE_QUANT, FAKE_QUANT_FLOAT8):
        source, *given = _operands(weight)
        with torch.no_grad():
            tensor = tensor_of(module, name)
            arguments = (tensor_of(module, str(one.target)) if isinstance(one, Node) else one for one in given)
            tensor.copy_(weight.target(tensor, *arguments))
        weight = source
    node.args = (x.args[0] if is_op(x, FAKE_QUANT, FAKE_QUANT_FLOAT8, DYNAMIC_FAKE_QUANT) else x, weight, *rest)


def _operands(node: Node) -> tuple[Any, ...]:
    return node.args


def two_four_layers(graph: ModelGraph) -> tuple[TwoFourLayer, ...]:
    """Return whether `deploy` gives a 2:4 kernel to each layer with a 2:4 mask, on a GPU."""
    patterns = {n: e.pattern for e in graph.edits if isinstance(e, Mask) for n in e.parameters}
    found = []
    for name, nodes in layer_nodes(graph.module).items():
        if patterns.get(name) not in {TWO_FOUR, PAIRS}:
            continue
        kind = torch.float16 if _int8(graph.module, nodes[0], name) is None else torch.int8
        reason = "cuSPARSELt has no kernel for `2:4-pairs`" if patterns[name] == PAIRS else ""
        reason = reason or _obstacle(nodes[0], tensor_of(graph.module, name), kind)
        status: Status = "not eligible" if reason else "selected"
        found.append(TwoFourLayer(layer=name.removesuffix(".weight"), status=status, reason=reason))
    return tuple(found)


def _obstacle(node: Node, weight: Tensor, kind: torch.dtype) -> str:
    """Return the reason why cuSPARSELt cannot multiply by a 2:4 weight; empty if it can."""
    rows, columns = SPARSE_TILES[kind]
    if not is_op(node, aten.linear.default):
        return "not a linear layer"
    if weight.shape[0] % rows or weight.shape[1] % columns:
        name = "INT8" if kind == torch.int8 else "FP16"
        return f"a {name} weight of {weight.shape[0]}x{weight.shape[1]} is no multiple of {rows}x{columns}"
    return ""


def move_tensors(module: GraphModule, device: str, kind: torch.dtype) -> None:
    """Move all tensors, and devices named in the graph; convert floats to `kind` except those of integer layers."""
    for owner in module.modules():
        floats = None if isinstance(owner, Int8Linear) else kind
        for leaf, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                dtype = floats if tensor.is_floating_point() and floats else tensor.dtype
                moved = tensor.detach().to(device, dtype)
                setattr(owner, leaf, nn.Parameter(moved, requires_grad=False) if leaf in owner._parameters else moved)
    set_constant_device(module, torch.device(device))
