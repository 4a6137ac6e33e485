"""How much each quantized input or weight disturbs the outputs: one backward pass in place of one evaluation for each
layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, tensor_of
from vitslim.stages.contract import StageContext
from vitslim.stages.reconstruction.sensitivity import BATCH
from vitslim.training.taps import with_taps

PROBES = 4
"""Random directions in the space of logits for each batch."""

NOISE_IMAGES = 32
"""Images that the search for what is harmful looks at."""


Errors = Callable[[Sequence[Tensor]], list[Tensor]]
"""Makes, of what tapped nodes compute, the errors there."""


def measure_noise(
    graph: ModelGraph, quantizers: Mapping[str, Callable[[Tensor], Tensor]], context: StageContext
) -> dict[str, float]:
    """`noise_shares` on a few calibration images of all classes; empty without quantizers."""
    shown = _images(graph, context, "looking for harmful inputs")
    return noise_shares(graph.module, quantizers, shown, context.seed) if quantizers else {}


def measure_weight_noise(graph: ModelGraph, rounded: Mapping[str, Tensor], context: StageContext) -> dict[str, float]:
    """`weight_noise_shares` on a few calibration images of all classes; empty without weights."""
    shown = _images(graph, context, "looking for harmful weights")
    return weight_noise_shares(graph.module, rounded, shown, context.seed) if rounded else {}


def noise_shares(
    module: GraphModule, quantizers: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Weight name to the share of the outputs' power that quantizing the layer's input alone adds as noise.

    module: the float graph. To first order an error d of an input moves the logits by J d; for a random direction v
    the mean of (v^T J d)^2 is |J d|^2, and v^T J comes from one backward pass for all layers at once. d is summed over
    an image before it is squared, so errors that cancel do not count.
    """
    layers = layer_nodes(module)
    places = [(name, argument(node, 0)) for name in quantizers for node in layers[name]]

    def errors(shown: Sequence[Tensor]) -> list[Tensor]:
        return [quantizers[name](x) - x for (name, _), x in zip(places, shown, strict=True)]

    return _shares(with_taps(module, [node for _, node in places]), [name for name, _ in places], errors, batches, seed)


def weight_noise_shares(
    module: GraphModule, rounded: Mapping[str, Tensor], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Weight name to the share of the outputs' power that other values of this weight alone add as noise.

    rounded: those values, of the weights' shapes. As `noise_shares`, at the outputs of layers; the mean of each channel
    over a batch does not count, since a bias makes up for it.
    """
    layers = layer_nodes(module)
    places = [(name, node) for name in rounded for node in layers[name]]
    moved = {name: values - tensor_of(module, name).detach() for name, values in rounded.items()}

    def errors(shown: Sequence[Tensor]) -> list[Tensor]:
        inputs = shown[len(places) :]
        return [_moved_outputs(node, x, moved[name]) for (name, node), x in zip(places, inputs, strict=True)]

    nodes = [node for _, node in places]
    tapped = with_taps(module, [*nodes, *(argument(node, 0) for node in nodes)])
    return _shares(tapped, [name for name, _ in places], errors, batches, seed)


def _images(graph: ModelGraph, context: StageContext, label: str) -> Iterator[Tensor]:
    images = context.data.calibration.balanced(NOISE_IMAGES)
    batches = images.batches(images_at_once(graph, BATCH, backward=True))
    return (found for found, _ in context.progress.track(batches, label))


def _moved_outputs(layer: Node, x: Tensor, moved: Tensor) -> Tensor:
    """By how much the outputs of a layer change when its weight does, but for the mean of each channel."""
    target: Any = layer.target
    error: Tensor = target(x, moved, None, *layer.args[3:])
    channels = -1 if is_op(layer, torch.ops.aten.linear.default) else 1
    others = [dim for dim in range(error.dim()) if dim != channels % error.dim()]
    return error - error.mean(dim=others, keepdim=True)


def _shares(
    tapped: GraphModule, names: Sequence[str], errors: Errors, batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Errors at the first tapped nodes, one for each name, as shares of the outputs' power."""
    generator = torch.Generator().manual_seed(seed)
    noise, signal = dict.fromkeys(names, 0.0), 0.0
    for images in batches:
        logits, shown = tapped(images.clone().requires_grad_())
        signal += float(logits.detach().square().sum())
        with torch.no_grad():
            found = errors(shown)
        for _ in range(PROBES):
            direction = torch.randn(logits.shape, generator=generator)
            gradients = torch.autograd.grad((logits * direction).sum(), shown[: len(names)], retain_graph=True)
            for name, error, gradient in zip(names, found, gradients, strict=True):
                moved = (gradient * error).reshape(len(images), -1).sum(dim=1)
                noise[name] += float(moved.detach().square().sum()) / PROBES
    return {name: found / signal if signal > 0 else 0.0 for name, found in noise.items()}
