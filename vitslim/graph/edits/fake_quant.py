"""Fake quantizers on the input activation and the weight of linears and convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from vitslim.errors import StageError, closest
from vitslim.graph.anatomy import image_dependent_nodes
from vitslim.graph.axes.operators import Trait, has_trait
from vitslim.graph.edits.edit import Edit
from vitslim.graph.edits.quantize_attention import QuantizeAttention
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op, parameter_of, tensor_of
from vitslim.graph.ops.fake_quant import (
    DYNAMIC_FAKE_QUANT,
    FAKE_QUANT,
    QUANTIZER_PREFIX,
    activation_range,
    to_integers,
    weight_range,
)
from vitslim.graph.ops.float8 import FAKE_QUANT_FLOAT8, to_float8
from vitslim.units import FLOAT_BITS

aten = torch.ops.aten

_OUTPUT_AXIS = 0
"""Output channels are the first dimension of the weight of a linear and of a convolution."""
_REDUCTION_AXIS = 1


@dataclass(frozen=True)
class FakeQuantSite:
    """Quantization of the input activation and the weight of one linear or convolution.

    Scales and zero points are parameters and buffers of the graph and are saved with the weights.
    """

    weight: str
    """Parameter name of the weight, such as `blocks.0.mlp.fc1.weight`."""
    weight_bits: int
    activation_bits: int
    """`vitslim.units.FLOAT_BITS` for a float activation."""
    zero_point: int | None = None
    """Zero point of an unsigned activation; None for a signed one, whose zero point is 0."""
    dynamic: bool = False
    """Whether scale and zero point of the activation are computed from each batch; its integers are unsigned."""
    group_size: int = 0
    """Weights along the reduction that share a scale; 0: all weights of an output channel."""
    weight_zero_points: bool = False
    """Whether each weight group also has a zero point."""
    integer_scales: bool = False
    """Whether each group scale is an integer multiple of the scale of its output channel."""
    per_tensor: bool = False
    """Whether all weights share one scale."""
    narrow: bool = False
    """Whether the integers of a signed activation are symmetric about zero: -127 to 127 for 8 bits."""
    float8: bool = False
    """Whether both are 8-bit floats (E4M3) instead of integers; weights have a scale for each output channel."""
    shift: float = 0.0
    """Constant that is added to the activation before it is quantized, and subtracted afterwards."""

    @property
    def matmul_form(self) -> tuple[int, int]:
        """Bits and group size of the weight in the matmul: integer group scales make it 8-bit and per-channel."""
        return (8, 0) if self.integer_scales else (self.weight_bits, self.group_size)


@dataclass(frozen=True)
class InsertFakeQuant(Edit):
    """Fake quantizers on the input activation and the weight of each site."""

    sites: tuple[FakeQuantSite, ...]
    reduce_range: bool = False
    """Whether the weights keep sums of two adjacent products within 16 bits."""

    def replay(self, graph: ModelGraph) -> ModelGraph:
        """Insert quantizers with scales of one; their values are loaded with the weights."""
        return insert_fake_quant(graph, self.sites, reduce_range=self.reduce_range)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> InsertFakeQuant:
        """Rebuild the edit."""
        return cls(tuple(FakeQuantSite(**site) for site in fields["sites"]), fields["reduce_range"])


def layer_of(weight: str) -> str:
    """Name of the layer of a weight: `head` for `head.weight`; other names are returned unchanged."""
    return weight.removesuffix(".weight")


def activation_scale_name(weight: str) -> str:
    """Name of the parameter with the scale of the input activation of the layer with this weight, shape ()."""
    return f"{QUANTIZER_PREFIX}{layer_of(weight)}.input_scale"


def weight_scale_name(weight: str) -> str:
    """Name of the parameter with the scales of this weight, shape (out,), (out, groups), or () per tensor."""
    return f"{QUANTIZER_PREFIX}{layer_of(weight)}.weight_scale"


def weight_zero_points_name(weight: str) -> str:
    """Name of the buffer with the zero points of this weight's groups: float (out, groups)."""
    return f"{QUANTIZER_PREFIX}{layer_of(weight)}.weight_zero_points"


def layer_nodes(module: GraphModule) -> dict[str, tuple[Node, ...]]:
    """Return the linears and convolutions of each weight, quantized or not, in graph order."""
    found: dict[str, tuple[Node, ...]] = {}
    for node in module.graph.nodes:
        weight = parameter_of(node.args[1]) if has_trait(node, Trait.LAYER) else ""
        if weight:
            found[weight] = (*found.get(weight, ()), node)
    return found


def constant_layers(module: GraphModule) -> frozenset[str]:
    """Names of the weights of layers that do not depend on the image: a runtime computes them once."""
    moving = image_dependent_nodes(module)
    return frozenset(weight for weight, nodes in layer_nodes(module).items() if not moving.intersection(nodes))


def quantized_layers(module: GraphModule) -> frozenset[str]:
    """Names of the weights that have fake quantizers."""
    return frozenset(
        weight
        for weight, nodes in layer_nodes(module).items()
        if is_op(nodes[0].args[1], FAKE_QUANT, FAKE_QUANT_FLOAT8)
    )


def insert_fake_quant(
    graph: ModelGraph,
    sites: Sequence[FakeQuantSite],
    scales: Mapping[str, Tensor] | None = None,
    reduce_range: bool = False,
) -> ModelGraph:
    """Return a new graph with fake quantizers on the input activation and the weight of each site.

    Activations are quantized per tensor, weights per output channel, per group or per tensor. scales: values by the
    names that `activation_scale_name`, `weight_scale_name` and `weight_zero_points_name` return; missing scales start
    at one and missing zero points at zero, to be loaded later. reduce_range: recorded in the edit, for the exported
    file. Raises StageError for a weight that no layer has, that is listed twice or already quantized, and for a group
    size on a weight that is not a matrix or that does not divide its reduction.
    """
    new = graph.copy()
    layers = layer_nodes(new.module)
    taken = set(quantized_layers(new.module))
    for site in sites:
        if site.weight not in layers:
            raise StageError(f"no layer has a weight '{site.weight}'", closest(site.weight, layers))
        if site.weight in taken:
            raise StageError(f"'{site.weight}' is already quantized", "list each weight in one quantize stage")
        taken.add(site.weight)
        _attach(new.module, site, scales or {})
        _quantize_operands(new.module, layers[site.weight], site)
    new.module.graph.lint()
    new.module.recompile()
    new.edits = (*new.edits, InsertFakeQuant(tuple(sites), reduce_range))
    return new


def integer_weights(module: GraphModule, quantizer: Any) -> Tensor:
    """Return the integers to which a fake quantizer rounds its weight, as float in the weight's shape.

    For a quantizer to 8-bit floats these are the stored floats.
    """
    if is_op(quantizer, FAKE_QUANT_FLOAT8):
        source, factors = (tensor_of(module, parameter_of(one)).detach() for one in quantizer.args[:2])
        return to_float8(source, factors, quantizer.args[2]).float()
    weight, scale, zero_point, axis, qmin, qmax, group_size, *zero_points = quantizer.args
    values, scales, *points = (tensor_of(module, parameter_of(one)) for one in (weight, scale, *zero_points))
    zero: Any = points[0] if points else zero_point
    with torch.no_grad():
        return to_integers(values, scales, axis, qmin, qmax, zero, group_size)


def shifted_quantizer(operand: Any) -> Node | None:
    """Return the fake quantizer from whose result an operand subtracts a constant; None for any other operand."""
    shifted = is_op(operand, aten.sub.Tensor) and is_op(operand.args[0], FAKE_QUANT)
    return operand.args[0] if shifted and isinstance(operand.args[1], float) else None


def remove_fake_quant(graph: ModelGraph) -> ModelGraph:
    """Return a new graph with the same float weights and without quantizers and scales."""
    new = graph.copy()
    bypass_quantizers(new.module)
    new.module.graph.eliminate_dead_code()
    new.module.delete_all_unused_submodules()
    new.module.recompile()
    new.edits = tuple(edit for edit in new.edits if not isinstance(edit, (InsertFakeQuant, QuantizeAttention)))
    return new


def bypass_quantizers(module: GraphModule) -> None:
    """In place: users of a fake quantizer read its input instead."""
    for node in module.graph.nodes:
        if is_op(node, FAKE_QUANT, FAKE_QUANT_FLOAT8, DYNAMIC_FAKE_QUANT):
            node.replace_all_uses_with(node.args[0])


def _attach(module: GraphModule, site: FakeQuantSite, scales: Mapping[str, Tensor]) -> None:
    """Add the scales of a site as parameters."""
    weight = tensor_of(module, site.weight)
    holder = nn.Module()
    shapes: dict[str, tuple[int, ...]] = {weight_scale_name(site.weight): _weight_scale_shape(weight, site)}
    if has_activation_scale(site):
        shapes[activation_scale_name(site.weight)] = ()
    for name, shape in shapes.items():
        value = scales[name].detach().clone() if name in scales else torch.ones(shape)
        if value.shape != shape:
            raise StageError(f"'{name}' has shape {tuple(value.shape)}, expected {shape}")
        holder.register_parameter(name.rpartition(".")[2], nn.Parameter(value.to(weight)))
    if site.weight_zero_points:
        name, shape = weight_zero_points_name(site.weight), _weight_scale_shape(weight, site)
        holder.register_buffer(name.rpartition(".")[2], scales.get(name, torch.zeros(shape)).detach().clone())
    module.add_submodule(QUANTIZER_PREFIX + layer_of(site.weight), holder)


def has_activation_scale(site: FakeQuantSite) -> bool:
    """Whether the input activation of a site is quantized with a calibrated scale."""
    return site.activation_bits < FLOAT_BITS and not site.dynamic


def _weight_scale_shape(weight: Tensor, site: FakeQuantSite) -> tuple[int, ...]:
    if site.group_size and (weight.dim() != 2 or weight.shape[_REDUCTION_AXIS] % site.group_size):
        raise StageError(
            f"'{site.weight}' of shape {tuple(weight.shape)} cannot have groups of {site.group_size} weights",
            "groups need a linear layer whose number of input channels is a multiple of the group size",
        )
    if site.per_tensor:
        return ()
    _, group_size = site.matmul_form
    outputs = weight.shape[_OUTPUT_AXIS]
    return (outputs, weight.shape[_REDUCTION_AXIS] // group_size) if group_size else (outputs,)


def _quantize_operands(module: GraphModule, nodes: tuple[Node, ...], site: FakeQuantSite) -> None:
    """Quantize the input activation of each layer that uses the weight, and the weight once for all of them."""
    graph = module.graph
    with graph.inserting_before(nodes[0]):
        weight = _quantized_weight(graph, nodes[0].args[1], site)
    for node in nodes:
        with graph.inserting_before(node):
            node.args = (_quantized_activation(graph, node.args[0], site), weight, *node.args[2:])


def _quantized_weight(graph: Graph, x: Any, site: FakeQuantSite) -> Node:
    scale = graph.get_attr(weight_scale_name(site.weight))
    if site.float8:
        return graph.call_function(FAKE_QUANT_FLOAT8, (x, scale, _OUTPUT_AXIS))
    bits, group_size = site.matmul_form
    axis = None if site.per_tensor else _REDUCTION_AXIS if group_size else _OUTPUT_AXIS
    points = (graph.get_attr(weight_zero_points_name(site.weight)),) if site.weight_zero_points else ()
    return graph.call_function(FAKE_QUANT, (x, scale, 0, axis, *weight_range(bits, group_size), group_size, *points))


def _quantized_activation(graph: Graph, x: Any, site: FakeQuantSite) -> Any:
    if site.dynamic:
        return graph.call_function(DYNAMIC_FAKE_QUANT, (x,))
    if not has_activation_scale(site):
        return x
    scale = graph.get_attr(activation_scale_name(site.weight))
    if site.float8:
        return graph.call_function(FAKE_QUANT_FLOAT8, (x, scale, None))
    limits = activation_range(site.activation_bits, site.zero_point, site.narrow)
    if not site.shift:
        return graph.call_function(FAKE_QUANT, (x, scale, site.zero_point or 0, None, *limits, 0))
    shifted = graph.call_function(aten.add.Tensor, (x, site.shift))
    quantized = graph.call_function(FAKE_QUANT, (shifted, scale, site.zero_point or 0, None, *limits, 0))
    return graph.call_function(aten.sub.Tensor, (quantized, site.shift))
