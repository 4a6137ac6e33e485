"""Choose the smoothing of each activation, in passes over the calibration images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from vitslim.data import Dataset
from vitslim.graph.edits.divide_tokens import divide_tokens
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.scale_activations import scale_activations
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import weight_range
from vitslim.graph.outputs import output_list
from vitslim.progress import Progress
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.layers import first_last_layers
from vitslim.stages.quantize.observe import FORWARD_BATCH, ChannelRanges, Observer
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.smoothing.channels import smooth
from vitslim.stages.quantize.smoothing.places import (
    ChannelPlace,
    Limits,
    channel_places,
    token_places,
    with_activations,
)
from vitslim.stages.quantize.smoothing.strength import STRENGTHS, HeldOutLoss, split_by_class
from vitslim.stages.quantize.smoothing.tokens import TokenNoise
from vitslim.stages.quantize.weights.forms import weight_form
from vitslim.stages.reconstruction.sensitivity import BATCH, random_gradients
from vitslim.training.evaluate import predict, run_over
from vitslim.training.tasks import task_for

WORTH_A_FACTOR = 0.7
"""Largest factor of the largest channel at which an activation is scaled at run time: it takes a pass over it."""


def smooth_activations(
    graph: ModelGraph, scheme: QuantScheme, context: StageContext, weights: Collection[str]
) -> ModelGraph:
    """Return a new graph that computes the same, from activations of similar range in all channels.

    weights: those of the quantized layers. The strength of each activation is chosen by cross-validation.
    """
    scaling, progress = scheme.activation_scaling, context.progress
    places, tokens = channel_places(graph, weights, scaling), token_places(graph, weights, scaling)
    if not places and not tokens:
        return graph.copy()
    halves = split_images(graph, context)
    ranges = [channel_ranges(graph, places, images, progress) for images in halves]
    held_out = [held_out_losses(scheme, places, found) for found in ranges]
    readers = {n: one.readers for n, one in places.items()} | {n: one.readers for n, one in tokens.items()}
    noise = {name: one.noise for name, one in tokens.items()}
    for one, images in zip(held_out, reversed(halves), strict=True):
        observe_gradients(graph, readers, {**one, **noise}, images, context)
    losses = [strength_losses(graph, scheme, places, one) for one in held_out]
    smoothed = _with_best_strengths(graph, places, ranges, losses)
    floors = {weight: floor for one in tokens.values() for weight, floor in one.floors().items()}
    return divide_tokens(smoothed, floors) if floors else smoothed


def split_images(graph: ModelGraph, context: StageContext) -> tuple[Dataset, Dataset]:
    """Return the calibration images of some predicted classes and those of all others; a single image twice.

    Without classes the images are divided along the direction in which their features differ most.
    """
    images, batch = context.data.calibration, images_at_once(graph, FORWARD_BATCH)
    module = graph.module.eval()
    last, _ = predict(
        lambda found: output_list(module(found))[-1], images, batch, context.progress, "smoothing: content of images"
    )
    half = split_by_class(task_for(graph.source).groups(last))
    first, second = (images.subset(torch.nonzero(one).flatten().tolist()) for one in (half, ~half))
    return first, second if len(second) else first


def channel_ranges(
    graph: ModelGraph, places: Mapping[str, ChannelPlace], images: Dataset, progress: Progress
) -> dict[str, Limits]:
    """Return the smallest and the largest value of each channel, float (channels,) each, by place."""
    layers = layer_nodes(graph.module)
    ranges = {name: ChannelRanges() for name in places}
    operands = {n: [(node, 0) for reader in one.readers for node in layers[reader]] for n, one in places.items()}
    observer = Observer(graph.module, ranges, operands)
    run_over(observer, images, images_at_once(graph, FORWARD_BATCH), progress, "smoothing: channel ranges")
    return {name: one.found for name, one in ranges.items()}


def held_out_losses(
    scheme: QuantScheme, places: Mapping[str, ChannelPlace], ranges: Mapping[str, Limits]
) -> dict[str, HeldOutLoss]:
    """Return the losses of all strengths, before any row is observed, by place."""
    bits, symmetric = scheme.activation_bits, scheme.symmetric
    return {n: HeldOutLoss(ranges[n], one.candidates(ranges[n], bits, symmetric)) for n, one in places.items()}


def observe_gradients(
    graph: ModelGraph,
    readers: Mapping[str, Sequence[str]],
    losses: Mapping[str, HeldOutLoss | TokenNoise],
    images: Dataset,
    context: StageContext,
) -> None:
    """Add the activations of all images, with their gradients, to the losses of the same place."""
    names, module = with_activations(graph, readers)
    generator = torch.Generator().manual_seed(context.seed)
    batches = images.batches(images_at_once(graph, BATCH, backward=True))
    for batch, _ in context.progress.track(batches, "smoothing: strengths"):
        activations, gradients = random_gradients(module, batch, generator)
        for name, x, gradient in zip(names, activations, gradients, strict=True):
            losses[name].observe(x, gradient)


def strength_losses(
    graph: ModelGraph, scheme: QuantScheme, places: Mapping[str, ChannelPlace], losses: Mapping[str, HeldOutLoss]
) -> dict[str, Tensor]:
    """Return the loss of each strength, float64 (strengths,), by place."""
    clips = scheme.activations != "dynamic"
    tops, module = _largest_integers(graph, scheme, places), graph.module
    return {
        n: losses[n].losses(torch.cat([tensor_of(module, r) for r in one.readers]).detach(), tops[n], clips)
        for n, one in places.items()
    }


def _with_best_strengths(
    graph: ModelGraph,
    places: Mapping[str, ChannelPlace],
    ranges: Sequence[Mapping[str, Limits]],
    losses: Sequence[Mapping[str, Tensor]],
) -> ModelGraph:
    """Return a new graph in which each activation has the strength of the least loss, over the range of both halves."""
    changes: dict[str, Limits] = {}
    factors: dict[str, Tensor] = {}
    for name, place in places.items():
        (low, high), (other_low, other_high) = (found[name] for found in ranges)
        strength = STRENGTHS[int((losses[0][name] + losses[1][name]).argmin())]
        if strength is None:
            continue
        shift, factor = place.change(torch.minimum(low, other_low), torch.maximum(high, other_high), strength)
        if not place.at_run_time:
            changes[name] = shift, factor
        elif (1 / factor).amin() <= WORTH_A_FACTOR:
            factors |= dict.fromkeys(place.readers, 1 / factor)
    smoothed = smooth(graph, changes)
    return scale_activations(smoothed, tuple(factors), factors) if factors else smoothed


def _largest_integers(graph: ModelGraph, scheme: QuantScheme, weights: Collection[str]) -> dict[str, int]:
    """Return the largest integer of each weight."""
    ends, module = first_last_layers(graph), graph.module
    forms = {w: weight_form(scheme, w in ends, True, tensor_of(module, w).shape[1]) for w in weights}
    return {w: weight_range(form.bits, form.group_size)[1] for w, form in forms.items()}
