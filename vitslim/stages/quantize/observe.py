"""Passes over calibration images that observe the input activation of every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

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
from vitslim.training.engine.collectives import gathered_batches
from vitslim.training.evaluate import run_over

aten = torch.ops.aten

FORWARD_BATCH = 16
"""Images of a forward pass without gradients; it bounds memory and changes no result."""


class Statistic(Protocol):
    """Statistic of the activations of one layer, collected batch by batch."""

    def observe(self, values: Tensor) -> None: ...


class SharedStatistic(Statistic, Protocol):
    """Statistic that ranks can add up."""

    def forget(self) -> None:
        """Forget the values that were observed, except those that it keeps in a minimum or a maximum."""
        ...

    def merge(self) -> None:
        """Add the values that the other ranks observed; all ranks call it."""
        ...


Operands = Mapping[str, Sequence[tuple[Node, int]]]
"""Name to nodes, each with the position of one of its operands."""


class ImageRanges:
    """Smallest and largest value of each channel of an activation in each image.

    Memory for all images is taken at once: small tensors that stay, between large ones that go, fragment the heap.
    """

    def __init__(self, images: int) -> None:
        """`images`: the number of all images."""
        self._images, self._batch = images, slice(0, 0)
        self._batches: list[slice] = []
        self._limits: tuple[Tensor, Tensor] | None = None

    def begin(self, images: int) -> None:
        """Begin the next batch, of so many images."""
        self._batch = slice(self._batch.stop, self._batch.stop + images)
        self._batches.append(self._batch)

    def observe(self, values: Tensor) -> None:
        """Add a float tensor (..., channels), whose rows are those of one image of the batch after the other."""
        here, channels = self._batch, values.shape[-1]
        if self._limits is None:
            self._limits = (
                torch.full((self._images, channels), torch.inf),
                torch.full((self._images, channels), -torch.inf),
            )
        low, high = self._limits
        rows = values.detach().reshape(here.stop - here.start, -1, channels)
        low[here] = torch.minimum(low[here], rows.amin(dim=1))
        high[here] = torch.maximum(high[here], rows.amax(dim=1))

    def merge(self) -> None:
        """Add the images of the other ranks, which share the batches as `predict` does; all ranks call it."""
        own = () if self._limits is None else self._limits
        parts = [tuple(limit[batch] for limit in own) for batch in self._batches]
        if rank_count() > 1 and (found := gathered_batches(parts)):
            low, high = zip(*found, strict=True)
            self._limits = torch.cat(low), torch.cat(high)

    def of(self, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return both over some images, bool (n,), or over all: float (channels,) each.

        Raises StageError if nothing was observed.
        """
        if self._limits is None:
            raise StageError("no calibration image reached a layer", "give more calibration images")
        low, high = self._limits if images is None else (limit[images] for limit in self._limits)
        return low.amin(dim=0), high.amax(dim=0)


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

    def run_node(self, n: Node) -> Any:
        """Observe the operands of a node, then run it."""
        for name, place in self._at.get(n, ()):
            x = self.fetch_args_kwargs_from_env(n)[0][place]
            # The sum is one fast pass; only that of infinite, NaN or extremely large values is not finite.
            if not torch.isfinite(x.sum()) and not torch.isfinite(x).all():
                raise StageError(
                    f"the input of '{name}' is not finite for a calibration image", "check the images and the weights"
                )
            self._statistics[name].observe(x)
        return super().run_node(n)


def observe(
    graph: ModelGraph,
    statistics: Mapping[str, SharedStatistic],
    context: StageContext,
    label: str,
    operands: Operands | None = None,
) -> None:
    """Pass activations of all calibration images to `statistics`; by default, the input of the layer of that name.

    The ranks share the batches, and all have the statistics of all images afterwards.
    """
    observer = Observer(graph.module, statistics, operands or layer_inputs(graph.module))
    images, batch, ranks = context.data.calibration, images_at_once(graph, FORWARD_BATCH), rank_count()
    if ranks == 1:
        run_over(observer, images, batch, context.progress, label)
        return
    batches = images.batches(batch)
    with torch.no_grad():
        # All ranks observe the first batch, so that the bins of all histograms agree; only rank 0 counts it.
        for first, _ in batches.every(0, len(batches)):
            observer(first)
        for statistic in statistics.values() if rank() > 0 else ():
            statistic.forget()
        for own, _ in context.progress.track(batches.after(1).every(rank(), ranks), label):
            observer(own)
    for statistic in statistics.values():
        statistic.merge()


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
