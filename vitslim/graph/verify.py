"""Permuting every prunable axis must not change the output: if it does, a rule forgot to tie something."""

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

MAX_ERROR = 1e-5
"""Largest relative change of the outputs that rounding explains; a forgotten tie changes them by tenths."""

MAX_ERROR_DOUBLE = 1e-9
"""The same in float64, asked where float32 is too coarse: some models, with weights drawn anew, blow rounding up."""

IMAGES = 2


@dataclass(frozen=True)
class Verification:
    """Outcome of permuting axes."""

    max_error: float
    """Largest change of a logit, relative to the largest logit, with all axes permuted at once."""
    axes: int
    """How many axes were permuted."""
    dtype: str = "float32"
    """float64 where the outputs moved in float32 and it had to be found out whether that was rounding."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """The same with one axis permuted, by its name; only when it was asked for."""

    @property
    def holds(self) -> bool:
        """Whether no output changed but for rounding."""
        return self.max_error <= (MAX_ERROR if self.dtype == "float32" else MAX_ERROR_DOUBLE)


def verify_axes(
    graph: ModelGraph, seed: int = 0, rules: Mapping[Any, Rule] | None = None, each_axis: bool = False
) -> Verification:
    """Permute every prunable axis at random and compare the outputs on two random images.

    Axes are a matter of structure, so weights are drawn anew: a layer scale of 1e-6, a bias of zero or a head that was
    never trained would hide a wrong axis. What is judged are the axes that an edit would use, `graph.axes`, or those
    that other `rules` find. Computed in float32 and, where that is too coarse to tell, again in float64. The graph
    stays as it is.
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
        expected = probe(images)
    orders = {axis.name: torch.randperm(axis.size, generator=generator).numpy() for axis in axes.prunable}
    errors = {}
    if each_axis:
        errors = {
            name: _error(copy.deepcopy(probe), axes, {name: order}, images, expected) for name, order in orders.items()
        }
    name = str(dtype).removeprefix("torch.")
    return Verification(_error(probe, axes, orders, images, expected), len(orders), name, errors)


def _to_double(module: GraphModule) -> None:
    """In place: weights, buffers, and every float32 that the graph itself asks for."""
    module.double()
    for node in module.graph.nodes:
        node.args = tuple(torch.float64 if item is torch.float32 else item for item in node.args)
        node.kwargs = {key: torch.float64 if item is torch.float32 else item for key, item in node.kwargs.items()}
    module.recompile()


def _error(
    module: GraphModule, table: AxisTable, orders: Mapping[str, Indices], images: Tensor, expected: Tensor
) -> float:
    """Permutes the module in place."""
    slice_tensors(module, table, {table.prim(name): order for name, order in orders.items()})
    with torch.no_grad():
        change = (module(images) - expected).abs().max()
    return float(change / expected.abs().max())


def draw_weights(module: GraphModule, generator: torch.Generator) -> None:
    """In place: random weights that keep the size of signals.

    Matrices by their fan-in, vectors about one, biases about zero. Buffers and what stages added (quantizer scales)
    keep their values but for a jitter: they may have to be positive. What is not finite stays, so that it shows.
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
