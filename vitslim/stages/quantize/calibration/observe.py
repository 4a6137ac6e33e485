"""Passes over calibration images that see the input of every layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import is_of_patches
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import has_activation_scale, layer_nodes
from vitslim.graph.nodes import is_op, tensor_of
from vitslim.graph.ops.fake_quant import activation_range, dynamic_fake_quant, fake_quant

aten = torch.ops.aten

FORWARD_BATCH = 32
"""Images of one step without gradients; it bounds memory and changes no result."""


class Statistic(Protocol):
    """What is gathered of the inputs of one layer, batch by batch."""

    def observe(self, values: Tensor) -> None: ...


Operands = Mapping[str, Sequence[tuple[Node, int]]]
"""Name to nodes with the position of one of their operands."""


class ChannelRanges:
    """Smallest and largest value of each channel of a linear layer's input."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def observe(self, values: Tensor) -> None:
        """Add a float tensor (..., channels)."""
        rows = values.flatten(end_dim=-2)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        """Both, float (channels,). Raises StageError when nothing was seen."""
        if self.low is None or self.high is None:
            raise StageError("no calibration image reached a layer", "give more calibration images")
        return self.low, self.high


class Observer(Interpreter):
    """Runs a graph as it is and shows operands of some of its nodes to statistics. Call it with images."""

    def __init__(self, module: GraphModule, statistics: Mapping[str, Statistic], operands: Operands) -> None:
        """`statistics` and what they see, both by name."""
        super().__init__(module)
        self._at: dict[Node, list[tuple[str, int]]] = defaultdict(list)
        self._statistics = statistics
        for name in statistics:
            for node, place in operands[name]:
                self._at[node].append((name, place))

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        logits: Tensor = self.run(images)
        return logits

    def run_node(self, n: Node) -> Any:
        """Run one node, showing its operands before where they are asked for."""
        for name, place in self._at.get(n, ()):
            x = self.fetch_args_kwargs_from_env(n)[0][place]
            if not torch.isfinite(x).all():
                raise StageError(
                    f"the input of '{name}' is not finite on a calibration image", "check the images and the weights"
                )
            self._statistics[name].observe(x)
        return super().run_node(n)


def layer_inputs(module: GraphModule) -> Operands:
    """The input of every layer, by the name of its weight."""
    return {weight: [(node, 0) for node in nodes] for weight, nodes in layer_nodes(module).items()}


def linear_layers(module: GraphModule) -> tuple[str, ...]:
    """Weights of linear layers, convolutions left out."""
    return tuple(
        weight for weight, nodes in layer_nodes(module).items() if all(is_op(n, aten.linear.default) for n in nodes)
    )


def solvable_layers(module: GraphModule) -> tuple[str, ...]:
    """Weights of the layers that are matrix products: linear ones, and convolutions of patches that do not overlap."""
    return tuple(
        weight
        for weight, nodes in layer_nodes(module).items()
        if all(is_op(n, aten.linear.default) or is_of_patches(n, tensor_of(module, weight)) for n in nodes)
    )


def input_quantizer(site: FakeQuantSite, scale: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What a site does to its input. `scale` () is needed where the site has one."""
    if site.dynamic:
        return dynamic_fake_quant
    if not has_activation_scale(site) or scale is None:
        return lambda x: x
    limits = activation_range(site.activation_bits, site.zero_point)
    return lambda x: fake_quant(x, scale, site.zero_point or 0, None, *limits, 0)
