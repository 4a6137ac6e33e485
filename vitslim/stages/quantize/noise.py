"""How much each quantised input disturbs the outputs: one backward pass in place of one evaluation for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.data import Dataset
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.stages.contract import StageContext

PROBES = 4
"""Random directions in the space of logits for each batch."""

NOISE_IMAGES = 32
NOISE_BATCH = 8
"""Images that the search for harmful inputs looks at; a backward pass needs the memory of all layers at once."""


def measure_noise(
    module: GraphModule, quantisers: Mapping[str, Callable[[Tensor], Tensor]], context: StageContext
) -> dict[str, float]:
    """`noise_shares` on the first calibration images."""
    images: Dataset = context.data.calibration
    images = images.subset(range(min(NOISE_IMAGES, len(images))))
    batches = context.progress.track(images.batches(NOISE_BATCH), "looking for harmful inputs")
    return noise_shares(module, quantisers, (found for found, _ in batches), context.seed)


def noise_shares(
    module: GraphModule, quantisers: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Weight name to the share of the outputs' power that quantising the layer's input alone adds as noise.

    module: the float graph. To first order an error d of an input moves the logits by J d; for a random direction v
    the mean of (v^T J d)^2 is |J d|^2, and v^T J comes from one backward pass for all layers at once. d is summed over
    an image before it is squared, so errors that cancel do not count.
    """
    generator = torch.Generator().manual_seed(seed)
    taps = _Taps(module, quantisers)
    noise, signal = dict.fromkeys(quantisers, 0.0), 0.0
    for images in batches:
        taps.seen.clear()
        logits = taps.run(images)
        signal += float(logits.detach().square().sum())
        with torch.no_grad():
            errors = [quantisers[name](x) - x for name, x in taps.seen]
        for _ in range(PROBES):
            direction = torch.randn(logits.shape, generator=generator)
            gradients = torch.autograd.grad((logits * direction).sum(), [x for _, x in taps.seen], retain_graph=True)
            for (name, _), error, gradient in zip(taps.seen, errors, gradients, strict=True):
                moved = (gradient * error).reshape(len(images), -1).sum(dim=1)
                noise[name] += float(moved.square().sum()) / PROBES
    return {name: found / signal if signal > 0 else 0.0 for name, found in noise.items()}


class _Taps(Interpreter):
    """Runs a graph and keeps the inputs of layers, connected to the outputs."""

    def __init__(self, module: GraphModule, weights: Iterable[str]) -> None:
        super().__init__(module)
        layers = layer_nodes(module)
        self._at = {node: weight for weight in weights for node in layers[weight]}
        self.seen: list[tuple[str, Tensor]] = []

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Logits of images, with a graph back to them."""
        return super().run(*(arg.requires_grad_() for arg in args), **kwargs)

    def run_node(self, n: Node) -> Any:
        """Run one node, keeping the first operand of a layer. An image may be its input: it takes a gradient too."""
        weight = self._at.get(n)
        if weight is not None:
            (x, *_), _ = self.fetch_args_kwargs_from_env(n)
            self.seen.append((weight, x))
        return super().run_node(n)
