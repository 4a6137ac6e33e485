"""One pass over calibration images that sees the input of every layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.errors import StageError
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.stages.quantize.calibrate import MagnitudeHistogram


class Observer(Interpreter):
    """Runs a graph as it is, and adds the inputs of the named weights' layers to histograms. Call it with images."""

    def __init__(self, module: GraphModule, weights: Collection[str]) -> None:
        super().__init__(module)
        self.histograms = {weight: MagnitudeHistogram() for weight in weights}
        layers = layer_nodes(module)
        self._weight_at: Mapping[Node, str] = {node: weight for weight in weights for node in layers[weight]}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, C, H, W)."""
        logits: Tensor = self.run(images)
        return logits

    def run_node(self, n: Node) -> Any:
        """Run one node, observing its first operand when it is one of the layers."""
        weight = self._weight_at.get(n)
        if weight is not None:
            (x, *_), _ = self.fetch_args_kwargs_from_env(n)
            if not torch.isfinite(x).all():
                raise StageError(
                    f"the input of '{weight}' is not finite on a calibration image", "check the images and the weights"
                )
            self.histograms[weight].observe(x)
        return super().run_node(n)
