"""Noise that quantizing the activation or the weight of one layer adds to the outputs.

One backward pass gives the noise of all layers, instead of one evaluation for each layer.
"""

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
from vitslim.graph.outputs import joined
from vitslim.stages.contract import StageContext
from vitslim.stages.reconstruction.sensitivity import BATCH
from vitslim.training.forms.taps import with_taps

PROBES = 4
"""Random directions in the space of outputs for each batch."""

NOISE_IMAGES = 32
"""Calibration images that the noise is measured on."""


Errors = Callable[[Sequence[Tensor]], list[Tensor]]
"""Function from the values of the tapped nodes to their errors."""


def measure_noise(
    graph: ModelGraph, quantizers: Mapping[str, Callable[[Tensor], Tensor]], context: StageContext
) -> dict[str, float]:
    """Return `noise_shares` of a few calibration images of all classes; empty without quantizers."""
    images = _images(graph, context, "noise of activations")
    return noise_shares(graph.module, quantizers, images, context.seed) if quantizers else {}


def measure_weight_noise(graph: ModelGraph, rounded: Mapping[str, Tensor], context: StageContext) -> dict[str, float]:
    """Return `weight_noise_shares` of a few calibration images of all classes; empty without weights."""
    images = _images(graph, context, "noise of weights")
    return weight_noise_shares(graph.module, rounded, images, context.seed) if rounded else {}


def noise_shares(
    module: GraphModule, quantizers: Mapping[str, Callable[[Tensor], Tensor]], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Return the noise that quantizing the input of each layer alone adds, as a share of the power of the outputs.

    module: the float graph. quantizers: by weight. To first order an error d of an activation changes the outputs by
    J d; the mean of (v^T J d)^2 over random directions v is |J d|^2, and one backward pass gives v^T J for all layers.
    The sum over an image comes before the square, so errors that cancel do not count.
    """
    layers = layer_nodes(module)
    places = [(name, argument(node, 0)) for name in quantizers for node in layers[name]]

    def errors(values: Sequence[Tensor]) -> list[Tensor]:
        return [quantizers[name](x) - x for (name, _), x in zip(places, values, strict=True)]

    return _shares(with_taps(module, [node for _, node in places]), [name for name, _ in places], errors, batches, seed)


def weight_noise_shares(
    module: GraphModule, rounded: Mapping[str, Tensor], batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Return the noise that rounding each weight alone adds, as a share of the power of the outputs.

    rounded: the rounded weights, by name. As `noise_shares`, with the error at the outputs of the layers; the mean of
    each channel over a batch does not count, since bias correction removes it.
    """
    layers = layer_nodes(module)
    places = [(name, node) for name in rounded for node in layers[name]]
    changes = {name: values - tensor_of(module, name).detach() for name, values in rounded.items()}

    def errors(values: Sequence[Tensor]) -> list[Tensor]:
        inputs = values[len(places) :]
        return [_output_change(node, x, changes[name]) for (name, node), x in zip(places, inputs, strict=True)]

    nodes = [node for _, node in places]
    tapped = with_taps(module, [*nodes, *(argument(node, 0) for node in nodes)])
    return _shares(tapped, [name for name, _ in places], errors, batches, seed)


def _images(graph: ModelGraph, context: StageContext, label: str) -> Iterator[Tensor]:
    images = context.data.calibration.balanced(NOISE_IMAGES)
    batches = images.batches(images_at_once(graph, BATCH, backward=True))
    return (found for found, _ in context.progress.track(batches, label))


def _output_change(layer: Node, x: Tensor, change: Tensor) -> Tensor:
    """Return the change of the outputs of a layer for a change of its weight, without the mean of each channel."""
    target: Any = layer.target
    error: Tensor = target(x, change, None, *layer.args[3:])
    channels = -1 if is_op(layer, torch.ops.aten.linear.default) else 1
    others = [dim for dim in range(error.dim()) if dim != channels % error.dim()]
    return error - error.mean(dim=others, keepdim=True)


def _shares(
    tapped: GraphModule, names: Sequence[str], errors: Errors, batches: Iterable[Tensor], seed: int
) -> dict[str, float]:
    """Return the noise of the errors at the first tapped nodes, one a name, as shares of the power of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    noise, signal = dict.fromkeys(names, 0.0), 0.0
    for images in batches:
        found, values = tapped(images.clone().requires_grad_())
        outputs = joined(found)
        signal += float(outputs.detach().square().sum())
        with torch.no_grad():
            changes = errors(values)
        for _ in range(PROBES):
            direction = torch.randn(outputs.shape, generator=generator)
            gradients = torch.autograd.grad((outputs * direction).sum(), values[: len(names)], retain_graph=True)
            for name, error, gradient in zip(names, changes, gradients, strict=True):
                projected = (gradient * error).reshape(len(images), -1).sum(dim=1)
                noise[name] += float(projected.detach().square().sum()) / PROBES
    return {name: found / signal if signal > 0 else 0.0 for name, found in noise.items()}
