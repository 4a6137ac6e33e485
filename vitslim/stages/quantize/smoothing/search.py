"""The passes over calibration images that decide how the channels of each input are equalized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.data import Dataset
from vitslim.graph.edits.divide_tokens import divide_tokens, is_bounded_below
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.edits.scale_activations import scale_activations
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.graph.ops.fake_quant import weight_range
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.calibration.observe import FORWARD_BATCH, ChannelRanges, Observer, linear_layers
from vitslim.stages.quantize.ptq.forms import end_layers, reads_image, weight_form
from vitslim.stages.quantize.smoothing.channels import equalize, equalizing, find_equalizable, outlier_factors
from vitslim.stages.quantize.smoothing.strength import STRENGTHS, HeldOut, Spread, halves, spread
from vitslim.stages.quantize.smoothing.tokens import TokenNoise
from vitslim.stages.reconstruction.sensitivity import BATCH, random_gradients
from vitslim.training.evaluate import predict
from vitslim.training.taps import with_taps

aten = torch.ops.aten

WORTH_A_FACTOR = 0.7
"""Inputs are multiplied where that makes their largest channel smaller by so much: it is a pass over them."""

WORTH_A_DIVISION = 0.5
"""Tokens are divided where that leaves so much of the noise of rounding: it takes three passes over them."""

Limits = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Place:
    """Inputs of layers whose channels can be brought to one range."""

    readers: tuple[str, ...]
    """Weights of the layers."""
    change: Callable[[Tensor, Tensor, float], Limits]
    """Shift and factor by the range of the channels and a strength: the layers read `(x - shift) / factor`."""
    at_run_time: bool = False
    """Whether inputs are multiplied in the file; otherwise what comes before them takes the change."""

    def candidates(self, limits: Limits, bits: int, symmetric: bool) -> list[Spread]:
        """One for each of STRENGTHS."""
        low, high = limits
        unchanged = torch.zeros_like(low), torch.ones_like(low)
        changes = [unchanged if one is None else self.change(low, high, one) for one in STRENGTHS]
        return [spread(limits, shift, factor, bits, symmetric) for shift, factor in changes]


@dataclass(frozen=True)
class Tokens:
    """Inputs of layers whose tokens can be divided by their largest magnitude."""

    readers: tuple[str, ...]
    """Weights of the layers."""
    noise: TokenNoise

    def floors(self) -> dict[str, float]:
        """The least divisor for each layer; empty where dividing is not worth its time."""
        best = self.noise.best()
        if best is None or best.left > WORTH_A_DIVISION:
            return {}
        return dict.fromkeys(self.readers, best.floor)


@dataclass(frozen=True)
class Equalizer:
    """Makes a graph that computes the same, from inputs that are spread evenly over their channels."""

    config: Ptq
    context: StageContext

    def __call__(self, graph: ModelGraph, weights: Collection[str]) -> ModelGraph:
        """A new graph. Each place is changed as far as images of other classes than its range is from allow."""
        places, tokens = self._places(graph, weights), self._tokens(graph, weights)
        if not places and not tokens:
            return graph.copy()
        parts = self._halves(graph)
        ranges = [self._ranges(graph, places, images) for images in parts]
        held = [self._held_out(places, found) for found in ranges]
        readers = {n: one.readers for n, one in places.items()} | {n: one.readers for n, one in tokens.items()}
        noise = {name: one.noise for name, one in tokens.items()}
        for seen, images in zip(held, reversed(parts), strict=True):
            self._look(graph, readers, {**seen, **noise}, images)
        changed = self._changed(graph, places, ranges, [self._losses(graph, places, seen) for seen in held])
        floors = {weight: floor for one in tokens.values() for weight, floor in one.floors().items()}
        return divide_tokens(changed, floors) if floors else changed

    def _changed(
        self,
        graph: ModelGraph,
        places: Mapping[str, Place],
        ranges: Sequence[Mapping[str, Limits]],
        losses: Sequence[Mapping[str, Tensor]],
    ) -> ModelGraph:
        """A new graph with the strength at each place that loses least."""
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
        equalized = equalize(graph, changes)
        return scale_activations(equalized, tuple(factors), factors) if factors else equalized

    def _places(self, graph: ModelGraph, weights: Collection[str]) -> dict[str, Place]:
        """By the weight of their first reader, those alone at which something is quantized."""
        places = {
            one.readers[0]: Place(one.readers, _centered if one.shifts else _scaled)
            for one in find_equalizable(graph)
            if one.readers[0] in weights
        }
        if self.config.activation_scaling == "per-channel":
            beyond = _unreachable(graph, weights)
            places |= {names[0]: Place(names, _by_factor, at_run_time=True) for names in beyond.values()}
        return places

    def _tokens(self, graph: ModelGraph, weights: Collection[str]) -> dict[str, Tokens]:
        """By the weight of their first reader, inputs whose tokens may be divided."""
        if self.config.activation_scaling != "per-token":
            return {}
        return {
            names[0]: Tokens(names, TokenNoise(all(map(is_bounded_below, sources))))
            for sources, names in _unreachable(graph, weights).items()
        }

    def _halves(self, graph: ModelGraph) -> tuple[Dataset, Dataset]:
        """Calibration images of some classes and of others, as the model sees them; twice the same where one is all."""
        images, batch = self.context.data.calibration, images_at_once(graph, FORWARD_BATCH)
        logits, _ = predict(graph.module, images, batch, self.context.progress, "classes of calibration images")
        half = halves(logits.argmax(dim=1))
        first, second = (images.subset(torch.nonzero(one).flatten().tolist()) for one in (half, ~half))
        return first, second if len(second) else first

    def _ranges(self, graph: ModelGraph, places: Mapping[str, Place], images: Dataset) -> dict[str, Limits]:
        layers = layer_nodes(graph.module)
        found = {name: ChannelRanges() for name in places}
        operands = {n: [(node, 0) for reader in one.readers for node in layers[reader]] for n, one in places.items()}
        observer = Observer(graph.module, found, operands)
        predict(observer, images, images_at_once(graph, FORWARD_BATCH), self.context.progress, "ranges of channels")
        return {name: one.found for name, one in found.items()}

    def _held_out(self, places: Mapping[str, Place], ranges: Mapping[str, Limits]) -> dict[str, HeldOut]:
        bits, symmetric = self.config.activation_bits, self.config.symmetric
        return {n: HeldOut(ranges[n], one.candidates(ranges[n], bits, symmetric)) for n, one in places.items()}

    def _look(
        self,
        graph: ModelGraph,
        readers: Mapping[str, Sequence[str]],
        seen: Mapping[str, HeldOut | TokenNoise],
        images: Dataset,
    ) -> None:
        """Show inputs, and the gradients there, to whoever asks for them by the name of their place."""
        names, tapped = _tapped(graph, readers)
        generator = torch.Generator().manual_seed(self.context.seed)
        batches = images.batches(images_at_once(graph, BATCH, backward=True))
        for batch, _ in self.context.progress.track(batches, "how far inputs can be equalized"):
            inputs, gradients = random_gradients(tapped, batch, generator)
            for name, x, gradient in zip(names, inputs, gradients, strict=True):
                seen[name].observe(x, gradient)

    def _losses(self, graph: ModelGraph, places: Mapping[str, Place], held: Mapping[str, HeldOut]) -> dict[str, Tensor]:
        """What each strength costs at each place, on images that its ranges are not from."""
        cut = self.config.activations != "dynamic"
        tops, module = self._tops(graph, places), graph.module
        return {
            n: held[n].losses(torch.cat([tensor_of(module, r) for r in one.readers]).detach(), tops[n], cut)
            for n, one in places.items()
        }

    def _tops(self, graph: ModelGraph, places: Collection[str]) -> dict[str, int]:
        """The largest codes of weights."""
        ends = end_layers(graph)
        forms = {w: weight_form(self.config, w in ends, True, tensor_of(graph.module, w).shape[1]) for w in places}
        return {w: weight_range(form.bits, form.block)[1] for w, form in forms.items()}


def _unreachable(graph: ModelGraph, weights: Collection[str]) -> dict[tuple[Node, ...], tuple[str, ...]]:
    """Inputs that nothing before can scale, those behind an activation function above all, and the weights of their
    readers."""
    module, layers = graph.module, layer_nodes(graph.module)
    reached = {reader for one in find_equalizable(graph) for reader in one.readers}
    found = defaultdict[tuple[Node, ...], tuple[str, ...]](tuple)
    for weight in linear_layers(module):
        if weight in weights and weight not in reached and not reads_image(module, weight):
            found[tuple(dict.fromkeys(argument(node, 0) for node in layers[weight]))] += (weight,)
    return found


def _centered(low: Tensor, high: Tensor, strength: float) -> Limits:
    return equalizing(low, high, strength, shifts=True)


def _scaled(low: Tensor, high: Tensor, strength: float) -> Limits:
    return equalizing(low, high, strength, shifts=False)


def _by_factor(low: Tensor, high: Tensor, strength: float) -> Limits:
    return torch.zeros_like(low), 1 / outlier_factors(low, high, strength)


def _tapped(graph: ModelGraph, readers: Mapping[str, Sequence[str]]) -> tuple[Sequence[str], GraphModule]:
    """A model that shows, beside its logits, copies of inputs that layers alone read, and the places of these.

    What else reads an input, as a shortcut does, sees the input itself: the gradient at the copy is that of the layers.
    """
    module = graph.copy().module
    layers, names = layer_nodes(module), []
    twins: list[Node] = []
    for name, weights in readers.items():
        nodes = [node for weight in weights for node in layers[weight]]
        for source in dict.fromkeys(argument(node, 0) for node in nodes):
            with module.graph.inserting_after(source):
                twin: Any = module.graph.call_function(aten.clone.default, (source,))
            for node in nodes:
                node.replace_input_with(source, twin)
            names.append(name)
            twins.append(twin)
    return names, with_taps(module, twins)
