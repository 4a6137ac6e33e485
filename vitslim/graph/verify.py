"""Verification of axes: a permutation of a prunable axis must not change the output, or a rule is wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitslim.graph.axes import AxisTable, infer_axes
from vitslim.graph.axes.indices import Indices
from vitslim.graph.axes.scope import Rule
from vitslim.graph.edits.slice import slice_tensors
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.outputs import joined

MAX_ERROR = 1e-5
"""Largest relative change of the outputs that rounding explains; a wrong rule changes them by tenths."""

MAX_ERROR_DOUBLE = 1e-9
"""The limit in float64, which is used if float32 exceeds its limit: random weights can amplify rounding errors."""

IMAGES = 2


@dataclass(frozen=True)
class Verification:
    """Result of a verification."""

    max_error: float
    """Largest change of an output, relative to the largest, with all axes permuted at once."""
    axes: int
    """Number of permuted axes."""
    dtype: str = "float32"
    """float64 if the outputs changed in float32 by more than MAX_ERROR."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """The error with only one axis permuted, by axis name; filled on request."""

    @property
    def holds(self) -> bool:
        """Whether the outputs changed by no more than rounding."""
        return self.max_error <= (MAX_ERROR if self.dtype == "float32" else MAX_ERROR_DOUBLE)


def verify_axes(
    graph: ModelGraph, seed: int = 0, rules: Mapping[Any, Rule] | None = None, each_axis: bool = False
) -> Verification:
    """Permute every prunable axis at random and compare the outputs on two random images.

    Weights are drawn at random: a layer scale of 1e-6, a bias of zero or an untrained head would hide a wrong axis. The
    verified axes are those that edits use, `graph.axes`, or those that other `rules` find. Computed in float32, and in
    float64 if the error in float32 is too large. The graph is not changed.
    """
    axes = graph.axes if rules is None else infer_axes(graph.module, graph.source.image, rules)
    found = _permuted(graph, axes, seed, each_axis, torch.float32)
    return found if found.holds else _permuted(graph, axes, seed, each_axis, torch.float64)


def _permuted(graph: ModelGraph, axes: AxisTable, seed: int, each_axis: bool, dtype: torch.dtype) -> Verification:
    generator = torch.Generator().manual_seed(seed)
    probe = copy.deepcopy(graph.module)
    if dtype == torch.float64:
        _to_double(probe)
    images = torch.randn(IMAGES, *graph.source.image, generator=generator).to(dtype)
    draw_weights(probe, generator)
    with torch.no_grad():
        expected = joined(probe(images))
    orders = {axis.name: torch.randperm(axis.size, generator=generator).numpy() for axis in axes.prunable}
    errors = {}
    if each_axis:
        errors = {
            name: _error(copy.deepcopy(probe), axes, {name: order}, images, expected) for name, order in orders.items()
        }
    name = str(dtype).removeprefix("torch.")
    return Verification(_error(probe, axes, orders, images, expected), len(orders), name, errors)


def _to_double(module: GraphModule) -> None:
    """In place: convert weights, buffers and the float32 arguments of the graph to float64."""
    module.double()
    for node in module.graph.nodes:
        node.args = tuple(torch.float64 if item is torch.float32 else item for item in node.args)
        node.kwargs = {key: torch.float64 if item is torch.float32 else item for key, item in node.kwargs.items()}
    module.recompile()


def _error(
    module: GraphModule, table: AxisTable, orders: Mapping[str, Indices], images: Tensor, expected: Tensor
) -> float:
    """Permute the module in place and return the largest change of its outputs, relative to the largest output."""
    slice_tensors(module, table, {table.prim(name): order for name, order in orders.items()})
    with torch.no_grad():
        change = (joined(module(images)) - expected).abs().max()
    return float(change / expected.abs().max())


def draw_weights(module: GraphModule, generator: torch.Generator) -> None:
    """In place: draw random weights that keep the magnitude of activations.

    Matrices are scaled by their fan-in, vectors are near one and biases near zero. Buffers and parameters that stages
    added (quantizer scales) change by a small factor only, since they may have to be positive. Values that are not
    finite are kept.
    """
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.copy_(torch.where(weight.isfinite(), _drawn(name, weight, noise), weight))
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1 + 0.1 * torch.rand(buffer.shape, generator=generator).to(buffer))


def _drawn(name: str, weight: Tensor, noise: Tensor) -> Tensor:
    if name.startswith("vitslim."):
        return weight * (1 + 0.1 * noise.tanh())
    if weight.ndim > 1:
        return noise / (weight[0].numel() ** 0.5 if weight.shape[0] > 1 else 1.0)
    return 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
