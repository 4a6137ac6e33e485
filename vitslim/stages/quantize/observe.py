"""Passes over calibration images that observe the input activation of every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.data import Batches
from vitslim.errors import StageError
from vitslim.graph.anatomy import is_patch_convolution
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import has_activation_scale, layer_nodes
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op, tensor_of
from vitslim.graph.ops.fake_quant import activation_range, dynamic_fake_quant, fake_quant
from vitslim.graph.outputs import Outputs
from vitslim.ranks import rank, rank_count
from vitslim.stages.contract import StageContext
from vitslim.training.engine.collectives import max_over_ranks

aten = torch.ops.aten

FORWARD_BATCH = 32
"""Images of a forward pass without gradients; it bounds memory and changes no result."""


class Statistic(Protocol):
    """Statistic of the activations of one layer, collected batch by batch."""

    def observe(self, values: Tensor) -> None: ...

    def forget(self) -> None:
        """Forget the values that were observed, except those that it keeps in a minimum or a maximum."""
        ...

    def merge(self) -> None:
        """Add the values that the other ranks observed; all ranks call it."""
        ...


Operands = Mapping[str, Sequence[tuple[Node, int]]]
"""Name to nodes, each with the position of one of its operands."""


class ChannelRanges:
    """Smallest and largest value of each channel of the input of a linear layer."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def observe(self, values: Tensor) -> None:
        """Add a float tensor (..., channels)."""
        rows = values.flatten(end_dim=-2)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def forget(self) -> None:
        """Keep everything: there is only a minimum and a maximum."""

    def merge(self) -> None:
        """Add the values that the other ranks observed; all ranks call it."""
        low, high = self.found
        self.low, self.high = -max_over_ranks(-low), max_over_ranks(high)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        """Both, float (channels,). Raises StageError if nothing was observed."""
        if self.low is None or self.high is None:
            raise StageError("no calibration image reached a layer", "give more calibration images")
        return self.low, self.high


class Observer(Interpreter):
    """Runs a graph unchanged and passes operands of its nodes to statistics. Call it with images."""

    def __init__(self, module: GraphModule, statistics: Mapping[str, Statistic], operands: Operands) -> None:
        """`operands`: the operands that each of the `statistics` observes, by its name."""
        super().__init__(module)
        self._at: dict[Node, list[tuple[str, int]]] = defaultdict(list)
        self._statistics = statistics
        for name in statistics:
            for node, place in operands[name]:
                self._at[node].append((name, place))

    def __call__(self, images: Tensor) -> Outputs:
        """Return the outputs of the model for images (n, C, H, W)."""
        outputs: Outputs = self.run(images)
        return outputs

    def forget(self) -> None:
        """Let all statistics forget the values that they observed."""
        for statistic in self._statistics.values():
            statistic.forget()

    def run_node(self, n: Node) -> Any:
        """Observe the operands of a node, then run it."""
        for name, place in self._at.get(n, ()):
            x = self.fetch_args_kwargs_from_env(n)[0][place]
            if not torch.isfinite(x).all():
                raise StageError(
                    f"the input of '{name}' is not finite for a calibration image", "check the images and the weights"
                )
            self._statistics[name].observe(x)
        return super().run_node(n)


def observe(
    graph: ModelGraph,
    statistics: Mapping[str, Statistic],
    context: StageContext,
    label: str,
    operands: Operands | None = None,
) -> None:
    """Pass activations of all calibration images to `statistics`; by default, the input of the layer of that name.

    The ranks share the batches, and all have the statistics of all images afterwards.
    """
    observer = Observer(graph.module, statistics, operands or layer_inputs(graph.module))
    observe_batches(observer, context.data.calibration.batches(images_at_once(graph, FORWARD_BATCH)), context, label)
    for statistic in statistics.values() if rank_count() > 1 else ():
        statistic.merge()


def observe_batches(observer: Observer, batches: Batches, context: StageContext, label: str) -> None:
    """Pass the batches of this rank to the statistics of an observer.

    All ranks observe the first batch, so that the bins of all histograms agree; only the first rank counts it.
    """
    ranks = rank_count()
    own = batches if ranks == 1 else batches.after(1).every(rank(), ranks)
    with torch.no_grad():
        for images, _ in batches.every(0, len(batches)) if ranks > 1 else ():
            observer(images)
        if rank() > 0:
            observer.forget()
        for images, _ in context.progress.track(own, label):
            observer(images)


def layer_inputs(module: GraphModule) -> Operands:
    """Return the input of every layer by the name of its weight."""
    return {weight: [(node, 0) for node in nodes] for weight, nodes in layer_nodes(module).items()}


def linear_layers(module: GraphModule) -> tuple[str, ...]:
    """Return the weights of linear layers, without convolutions."""
    return tuple(
        weight for weight, nodes in layer_nodes(module).items() if all(is_op(n, aten.linear.default) for n in nodes)
    )


def solvable_layers(module: GraphModule) -> tuple[str, ...]:
    """Return the weights of the layers that are matmuls: linear layers and non-overlapping patch convolutions."""
    return tuple(
        weight
        for weight, nodes in layer_nodes(module).items()
        if all(is_op(n, aten.linear.default) or is_patch_convolution(n, tensor_of(module, weight)) for n in nodes)
    )


def activation_quantizer(site: FakeQuantSite, scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the function that quantizes the activation of a site. A static site needs its `scale` ()."""
    if site.dynamic:
        return dynamic_fake_quant
    if not has_activation_scale(site) or scale is None:
        return lambda x: x
    limits = activation_range(site.activation_bits, site.zero_point)
    return lambda x: fake_quant(x, scale, site.zero_point or 0, None, *limits, 0)
