"""Activations that can be smoothed, and the layers that read them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.graph.edits.divide_tokens import is_bounded_below
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, graph_module, tensors_of
from vitslim.stages.quantize.layers import reads_image
from vitslim.stages.quantize.observe import linear_layers
from vitslim.stages.quantize.smoothing.channels import find_smoothable, outlier_factors, smoothing_factors
from vitslim.stages.quantize.smoothing.strength import STRENGTHS, SmoothedRange, smoothed_range
from vitslim.stages.quantize.smoothing.tokens import TokenNoise
from vitslim.training.forms.taps import with_taps

aten = torch.ops.aten

WORTH_A_DIVISION = 0.5
"""Largest noise ratio at which tokens are divided: a division takes three passes over the activation."""

Limits = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ChannelPlace:
    """An activation whose channels can be shifted and scaled."""

    readers: tuple[str, ...]
    """Weights of the layers that read it."""
    change: Callable[[Tensor, Tensor, float], Limits]
    """Shift and factor from the range of the channels and a strength: the layers read `(x - shift) / factor`."""
    at_run_time: bool = False
    """Whether the file multiplies the activation; otherwise the operator that produces it takes the change."""

    def candidates(self, limits: Limits, bits: int, symmetric: bool) -> list[SmoothedRange]:
        """Return the range for each of STRENGTHS."""
        low, high = limits
        unchanged = torch.zeros_like(low), torch.ones_like(low)
        changes = [unchanged if one is None else self.change(low, high, one) for one in STRENGTHS]
        return [smoothed_range(limits, shift, factor, bits, symmetric) for shift, factor in changes]


@dataclass(frozen=True)
class TokenPlace:
    """An activation whose tokens can be divided by their largest magnitude."""

    readers: tuple[str, ...]
    """Weights of the layers that read it."""
    noise: TokenNoise

    def floors(self) -> dict[str, float]:
        """Return the smallest divisor by weight; empty if the division is not worth its latency."""
        best = self.noise.best()
        if best is None or best.noise_ratio > WORTH_A_DIVISION:
            return {}
        return dict.fromkeys(self.readers, best.floor)


def channel_places(graph: ModelGraph, weights: Collection[str], scaling: str) -> dict[str, ChannelPlace]:
    """Return the activations of quantized layers whose channels can be scaled, by the weight of their first reader.

    scaling: `per-channel` includes activations that are scaled at run time.
    """
    places = {
        one.readers[0]: ChannelPlace(one.readers, centered if one.shifts else scaled)
        for one in find_smoothable(graph)
        if one.readers[0] in weights
    }
    if scaling == "per-channel":
        others = _without_producer(graph, weights)
        places |= {names[0]: ChannelPlace(names, _without_outliers, at_run_time=True) for names in others.values()}
    return places


def token_places(graph: ModelGraph, weights: Collection[str], scaling: str) -> dict[str, TokenPlace]:
    """Return the activations whose tokens may be divided, by the weight of their first reader."""
    if scaling != "per-token":
        return {}
    return {
        names[0]: TokenPlace(names, TokenNoise(all(map(is_bounded_below, sources))))
        for sources, names in _without_producer(graph, weights).items()
    }


def centered(low: Tensor, high: Tensor, strength: float) -> Limits:
    """Return shift and factor of an activation whose channels can be shifted."""
    return smoothing_factors(low, high, strength, shifts=True)


def scaled(low: Tensor, high: Tensor, strength: float) -> Limits:
    """Return a shift of zero, and the factor of an activation."""
    return smoothing_factors(low, high, strength, shifts=False)


def with_activations(graph: ModelGraph, readers: Mapping[str, Sequence[str]]) -> tuple[Sequence[str], GraphModule]:
    """Return a module that computes logits and the activations of these layers, and the place of each activation.

    readers: weights of the layers by the name of their place. The module shows copies that only these layers read, so
    the gradient of a copy excludes other readers, such as a shortcut.
    """
    module = graph_module(tensors_of(graph.module), copy.deepcopy(graph.module.graph))
    layers, names = layer_nodes(module), []
    copies: list[Node] = []
    for name, weights in readers.items():
        nodes = [node for weight in weights for node in layers[weight]]
        for source in dict.fromkeys(argument(node, 0) for node in nodes):
            with module.graph.inserting_after(source):
                clone: Any = module.graph.call_function(aten.clone.default, (source,))
            for node in nodes:
                node.replace_input_with(source, clone)
            names.append(name)
            copies.append(clone)
    return names, with_taps(module, copies)


def _without_outliers(low: Tensor, high: Tensor, strength: float) -> Limits:
    return torch.zeros_like(low), 1 / outlier_factors(low, high, strength)


def _without_producer(graph: ModelGraph, weights: Collection[str]) -> dict[tuple[Node, ...], tuple[str, ...]]:
    """Return the activations that no earlier operator can scale, such as those after GELU, with their readers."""
    module, layers = graph.module, layer_nodes(graph.module)
    smoothable = {reader for one in find_smoothable(graph) for reader in one.readers}
    found = defaultdict[tuple[Node, ...], tuple[str, ...]](tuple)
    for weight in linear_layers(module):
        if weight in weights and weight not in smoothable and not reads_image(module, weight):
            found[tuple(dict.fromkeys(argument(node, 0) for node in layers[weight]))] += (weight,)
    return found
