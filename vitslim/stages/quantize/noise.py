"""How much each quantised input disturbs the outputs: one backward pass in place of one evaluation for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.stages.contract import StageContext
from vitslim.stages.sensitivity import BATCH
from vitslim.training.taps import with_taps

PROBES = 4
"""Random directions in the space of logits for each batch."""

NOISE_IMAGES = 32
"""Images that the search for harmful inputs looks at."""


def measure_noise(
    graph: ModelGraph, quantisers: Mapping[str, Callable[[Tensor], Tensor]], context: StageContext
) -> dict[str, float]:
    """`noise_shares` on a few calibration images of all classes; empty without quantisers."""
    if not quantisers:
        return {}
    images = context.data.calibration.balanced(NOISE_IMAGES)
    batches = images.batches(images_at_once(graph, BATCH, backward=True))
    shown = (found for found, _ in context.progress.track(batches, "looking for harmful inputs"))
    return noise_shares(graph.module, quantisers, shown, context.seed)


def noise_shares(
    module: GraphModule, quantisers: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Weight name to the share of the outputs' power that quantising the layer's input alone adds as noise.

    module: the float graph. To first order an error d of an input moves the logits by J d; for a random direction v
    the mean of (v^T J d)^2 is |J d|^2, and v^T J comes from one backward pass for all layers at once. d is summed over
    an image before it is squared, so errors that cancel do not count.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = layer_nodes(module)
    places = [(name, argument(node, 0)) for name in quantisers for node in layers[name]]
    tapped = with_taps(module, [node for _, node in places])
    noise, signal = dict.fromkeys(quantisers, 0.0), 0.0
    for images in batches:
        logits, inputs = tapped(images.clone().requires_grad_())
        signal += float(logits.detach().square().sum())
        with torch.no_grad():
            errors = [quantisers[name](x) - x for (name, _), x in zip(places, inputs, strict=True)]
        for _ in range(PROBES):
            direction = torch.randn(logits.shape, generator=generator)
            gradients = torch.autograd.grad((logits * direction).sum(), inputs, retain_graph=True)
            for (name, _), error, gradient in zip(places, errors, gradients, strict=True):
                moved = (gradient * error).reshape(len(images), -1).sum(dim=1)
                noise[name] += float(moved.detach().square().sum()) / PROBES
    return {name: found / signal if signal > 0 else 0.0 for name, found in noise.items()}
