"""The form of a graph in which the range and the bits of each quantizer can be learned.

Every quantizer is a noise proxy (`vitslim::pseudo_quant`) with two parameters. Both forms share all other parameters.
Source: NIPQ (Shin et al., CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from vitslim.graph.edits.fake_quant import activation_scale_name, layer_nodes, weight_scale_name
from vitslim.graph.edits.quantize_attention import attention_blocks, operands
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import shared_copy, tensor_of
from vitslim.graph.ops.pseudo_quant import PSEUDO_QUANT, START_BITS, range_state

aten = torch.ops.aten


@dataclass(frozen=True)
class NoiseProxy:
    """The noise proxy of one tensor."""

    low: float
    """Smallest number of bits."""
    high: float
    """Largest number of bits; the same as `low` for fixed bits."""
    signed: bool
    """Whether the range is symmetric about zero; else it begins at zero."""
    end: Tensor
    """Initial largest value of the range: float, positive, (), or (out,) for a weight."""
    shift: float = 0.0
    """Constant that is added before the quantizer and subtracted after it."""
    learns_range: bool = True

    @property
    def learns_bits(self) -> bool:
        """Whether the bits are learned."""
        return self.high > self.low


def range_name(tensor: str) -> str:
    """Name of the range parameter of a tensor, which its scale names."""
    return f"{tensor}.range"


def bits_name(tensor: str) -> str:
    """Name of the bits parameter of a tensor, which its scale names."""
    return f"{tensor}.bits"


def noise_form(
    graph: ModelGraph, proxies: Mapping[str, NoiseProxy], *, stochastic: bool = True, empirical: bool = False
) -> ModelGraph:
    """Return the noise form of a graph, which shares all parameters of the graph.

    proxies: by the name of the scale that the quantizer will have (`weight_scale_name`, `activation_scale_name`,
    `attention_scale_name`); attention that has proxies must be decomposed. Masked weights get no noise. stochastic:
    bits are rounded up or down at random. empirical: noise with the distribution of the rounding errors.
    """
    form = replace(graph, module=shared_copy(graph.module))
    build = _Builder(form, proxies, stochastic, empirical)
    for name, operand in operands(form, attention_blocks(form)).items():
        if name in proxies:
            operand.matmul.update_arg(operand.place, build.proxy(operand.matmul, operand.value, name))
    for weight, nodes in layer_nodes(form.module).items():
        name = weight_scale_name(weight)
        quantized = build.proxy(nodes[0], nodes[0].args[1], name, graph.masks.get(weight)) if name in proxies else None
        for node in nodes:
            if quantized is not None:
                node.update_arg(1, quantized)
            if activation_scale_name(weight) in proxies:
                node.update_arg(0, build.proxy(node, node.args[0], activation_scale_name(weight)))
    form.module.graph.lint()
    form.module.recompile()
    return form


class _Builder:
    """Inserts noise proxies and their parameters into a graph."""

    def __init__(self, form: ModelGraph, proxies: Mapping[str, NoiseProxy], stochastic: bool, empirical: bool) -> None:
        self._module, self._proxies = form.module, proxies
        self._stochastic, self._empirical = stochastic, empirical

    def proxy(self, before: Node, x: Any, name: str, mask: Tensor | None = None) -> Node:
        """Insert the proxy of a tensor before a node, and return its result."""
        found, graph = self._proxies[name], self._module.graph
        if name not in dict(self._module.named_modules()):
            self._module.add_submodule(name, _parameters(found, mask))
        with graph.inserting_before(before):
            state = [graph.get_attr(range_name(name)), graph.get_attr(bits_name(name))]
            masked = graph.get_attr(f"{name}.mask") if mask is not None else None
            # Weights are parameters of the graph; all other tensors have one row for each image.
            images = x.op != "get_attr"
            numbers = (found.low, found.high, found.signed, self._stochastic, self._empirical, masked, images)
            if not found.shift:
                return graph.call_function(PSEUDO_QUANT, (x, *state, *numbers))
            return self._shifted(graph, x, found.shift, (*state, *numbers))

    @staticmethod
    def _shifted(graph: Graph, x: Any, shift: float, arguments: tuple[Any, ...]) -> Node:
        shifted = graph.call_function(aten.add.Tensor, (x, shift))
        noisy = graph.call_function(PSEUDO_QUANT, (shifted, *arguments))
        return graph.call_function(aten.sub.Tensor, (noisy, shift))


def _parameters(proxy: NoiseProxy, mask: Tensor | None) -> nn.Module:
    holder = nn.Module()
    ends = range_state(proxy.end.detach().clone())
    holder.register_parameter("range", nn.Parameter(ends, requires_grad=proxy.learns_range))
    holder.register_parameter("bits", nn.Parameter(torch.tensor(START_BITS), requires_grad=proxy.learns_bits))
    if mask is not None:
        holder.register_buffer("mask", mask.clone())
    return holder


def proxy_states(form: ModelGraph, proxies: Mapping[str, NoiseProxy]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the range and bits parameters of each tensor of a noise form, by its name."""
    return {n: (tensor_of(form.module, range_name(n)), tensor_of(form.module, bits_name(n))) for n in proxies}
