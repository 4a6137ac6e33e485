"""Choose the smoothing of each activation, in passes over the calibration images."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from vitslim.data import Dataset
from vitslim.graph.edits.divide_tokens import divide_tokens
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.scale_activations import scale_activations
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.graph.ops.fake_quant import weight_range
from vitslim.graph.outputs import output_list
from vitslim.ranks import rank, rank_count
from vitslim.recipe.stages.quantize import GRADIENT_IMAGES
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.histogram import Extremes
from vitslim.stages.quantize.layers import first_last_layers, reads_image
from vitslim.stages.quantize.observe import FORWARD_BATCH, ImageRanges, Observer
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
from vitslim.training.evaluate import predict
from vitslim.training.tasks import task_for

WORTH_A_FACTOR = 0.7
"""Largest factor of the largest channel at which an activation is scaled at run time: it takes a pass over it."""


class Smoothed(NamedTuple):
    """A smoothed graph, and the ranges of the input activations of its layers that are known without another pass."""

    graph: ModelGraph
    ranges: Mapping[str, Extremes]
    """By weight."""


def smooth_activations(
    graph: ModelGraph, scheme: QuantScheme, context: StageContext, weights: Collection[str]
) -> Smoothed:
    """Return a new graph that computes the same, from activations of similar range in all channels.

    weights: those of the quantized layers. The strength of each activation is chosen by cross-validation: one pass over
    all calibration images gives the ranges, another one over at most GRADIENT_IMAGES of them the gradients.
    """
    scaling = scheme.activation_scaling
    places, tokens = channel_places(graph, weights, scaling), token_places(graph, weights, scaling)
    if not places and not tokens:
        return Smoothed(graph.copy(), {})
    half, seen = observe_ranges(graph, places, _others(graph, scheme, places, weights), context)
    parts = half, (~half if bool((~half).any()) else half)
    halves = [_gradient_images(context.data.calibration, part) for part in parts]
    ranges = [{name: one.of(part) for name, one in seen.channels.items()} for part in parts]
    held_out = [held_out_losses(scheme, places, found) for found in ranges]
    readers = {n: one.readers for n, one in places.items()} | {n: one.readers for n, one in tokens.items()}
    noise = {name: one.noise for name, one in tokens.items()}
    for one, images in zip(held_out, reversed(halves), strict=True):
        observe_gradients(graph, readers, {**one, **noise}, images, context)
    for loss in (*held_out[0].values(), *held_out[1].values()):
        loss.merge()
    for one_noise in noise.values():
        one_noise.merge()
    losses = [strength_losses(graph, scheme, places, one) for one in held_out]
    limits = {name: one.of() for name, one in seen.channels.items()}
    smoothed, changes = _with_best_strengths(graph, places, limits, losses)
    floors = {weight: floor for one in tokens.values() for weight, floor in one.floors().items()}
    known = {name: one for name, one in seen.whole.items() if name not in floors}
    for name, place in places.items():
        known |= dict.fromkeys(place.readers, smoothed_extremes(limits[name], changes.get(name)))
    return Smoothed(divide_tokens(smoothed, floors) if floors else smoothed, known)


@dataclass(frozen=True)
class Ranges:
    """Ranges of the input activations of a float graph."""

    channels: Mapping[str, ImageRanges]
    """By place."""
    whole: Mapping[str, Extremes]
    """By weight, of layers that read none of the places."""


def observe_ranges(
    graph: ModelGraph, places: Mapping[str, ChannelPlace], others: Collection[str], context: StageContext
) -> tuple[Tensor, Ranges]:
    """Return a half of the calibration images, bool (n,), of some of the predicted classes, and the ranges on all.

    others: weights of further layers. Without classes the images are divided along the direction in which their
    features differ most. A single image is the first half.
    """
    layers, batch = layer_nodes(graph.module), images_at_once(graph, FORWARD_BATCH)
    images = context.data.calibration
    seen = Ranges({name: ImageRanges(len(images)) for name in places}, {name: Extremes() for name in others})
    readers = {name: one.readers for name, one in places.items()} | {name: (name,) for name in others}
    operands = {name: list(_sources(layers, weights)) for name, weights in readers.items()}
    observer = Observer(graph.module.eval(), {**seen.channels, **seen.whole}, operands)

    def run(some: Tensor) -> Tensor:
        for one in seen.channels.values():
            one.begin(len(some))
        return output_list(observer(some))[-1]

    last, _ = predict(run, images, batch, context.progress, "smoothing: ranges", by_ranks=True)
    for channels in seen.channels.values():
        channels.merge()
    for extremes in seen.whole.values():
        extremes.merge()
    return split_by_class(task_for(graph.source).groups(last)), seen


def smoothed_extremes(limits: Limits, change: Limits | None) -> Extremes:
    """Return the range of `(x - shift) / factor` for x between `limits`, float (channels,) each; None: of x itself."""
    low, high = limits if change is None else ((limit - change[0]) / change[1] for limit in limits)
    return Extremes(float(low.amin()), float(high.amax()))


def _sources(layers: Mapping[str, Sequence[Node]], weights: Sequence[str]) -> Iterator[tuple[Node, int]]:
    """Yield one reader of each activation that these layers read."""
    nodes = [node for weight in weights for node in layers[weight]]
    for source in dict.fromkeys(argument(node, 0) for node in nodes):
        yield next(node for node in nodes if argument(node, 0) is source), 0


def _others(
    graph: ModelGraph, scheme: QuantScheme, places: Mapping[str, ChannelPlace], weights: Collection[str]
) -> list[str]:
    """Return the layers that read none of the places and need a range from the smallest to the largest value."""
    if scheme.activations != "static" or scheme.calibrate != "minmax":
        return []
    read = {reader for one in places.values() for reader in one.readers}
    return [weight for weight in weights if weight not in read and not reads_image(graph.module, weight)]


def _gradient_images(images: Dataset, half: Tensor) -> Dataset:
    """Return at most half of GRADIENT_IMAGES, of all classes, of a half of the images."""
    return images.subset(torch.nonzero(half).flatten().tolist()).balanced(GRADIENT_IMAGES // 2)


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
    """Add the activations of all images, with their gradients, to the losses of the same place.

    The ranks share each batch; of a batch that is smaller than the ranks, all compute everything and rank 0 adds it.
    """
    names, module = with_activations(graph, readers)
    generator, ranks = torch.Generator().manual_seed(context.seed), rank_count()
    batches = images.batches(max(images_at_once(graph, BATCH, backward=True), ranks))
    own = context.progress.track(batches.part(rank(), ranks), "smoothing: strengths")
    for whole, (batch, _) in zip(map(len, batches.positions), own, strict=True):
        activations, gradients = random_gradients(module, batch, generator, whole=whole)
        if whole < ranks and rank() > 0:
            continue
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
    limits: Mapping[str, Limits],
    losses: Sequence[Mapping[str, Tensor]],
) -> tuple[ModelGraph, Mapping[str, Limits]]:
    """Return a new graph in which each activation has the strength of the least loss, and all changes by place."""
    changes: dict[str, Limits] = {}
    for name, place in places.items():
        strength = STRENGTHS[int((losses[0][name] + losses[1][name]).argmin())]
        if strength is None:
            continue
        shift, factor = place.change(*limits[name], strength)
        if not place.at_run_time or (1 / factor).amin() <= WORTH_A_FACTOR:
            changes[name] = shift, factor
    smoothed = smooth(graph, {name: change for name, change in changes.items() if not places[name].at_run_time})
    factors = {
        reader: 1 / factor
        for name, (_, factor) in changes.items()
        if places[name].at_run_time
        for reader in places[name].readers
    }
    return scale_activations(smoothed, tuple(factors), factors) if factors else smoothed, changes


def _largest_integers(graph: ModelGraph, scheme: QuantScheme, weights: Collection[str]) -> dict[str, int]:
    """Return the largest integer of each weight."""
    ends, module = first_last_layers(graph), graph.module
    forms = {w: weight_form(scheme, w in ends, True, tensor_of(module, w).shape[1]) for w in weights}
    return {w: weight_range(form.bits, form.group_size)[1] for w, form in forms.items()}
