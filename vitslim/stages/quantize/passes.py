"""The passes over calibration images that decide how a float graph is quantised."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.attention import parameter_of
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.insert_fake_quant import input_scale_name, layer_nodes, weight_scale_name
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.graph.ops.fake_quant import fake_quant, weight_range
from vitslim.recipe.stages import Ptq, Quantised
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.calibrate import Histogram, limit_pairs, pair_safe_scale, weight_scale
from vitslim.stages.quantize.equalise import equalise, find_equalisable
from vitslim.stages.quantize.noise import measure_noise
from vitslim.stages.quantize.observe import (
    ChannelRanges,
    Gram,
    MeanShift,
    Observer,
    Statistic,
    input_quantiser,
    linear_layers,
)
from vitslim.stages.quantize.rounding import gptq, refine
from vitslim.stages.sensitivity import BATCH as BACKWARD_BATCH
from vitslim.stages.sensitivity import Sensitivity
from vitslim.training.evaluate import predict
from vitslim.units import FLOAT_BITS

BATCH = 32
"""Images in one calibration step; it bounds memory and changes no result."""

END_ROLES = ("patch_embed", "head")
"""Roles of the layers at both ends of a model."""

REFINED_BITS = 4
"""Codes of more bits are near enough to what they round, and in pairs they have a limit of their own."""

TELLING_ROWS = 2048
"""Inputs after which the range of a channel is known. Channels of one class token an image, brought to the range that
a few hundred images have shown, would be cut off by the next image."""


@dataclass(frozen=True)
class Observed:
    """What a pass found out, by weight name."""

    histograms: Mapping[str, Histogram]
    grams: Mapping[str, Gram]


class Calibration:
    """Runs the passes that a recipe asks for, on its calibration images."""

    def __init__(self, config: Ptq, context: StageContext) -> None:
        self.config, self.context = config, context

    def equalise(self, graph: ModelGraph, weights: Collection[str]) -> ModelGraph:
        """A copy whose inputs are spread evenly over their channels, where the recipe asks for it."""
        places = find_equalisable(graph) if self.config.equalise and self.config.inputs != "float" else ()
        ranges = {name: ChannelRanges() for place in places for name in place.readers[:1] if name in weights}
        if not ranges:
            return graph.copy()
        self._pass(graph.module, ranges, "ranges of channels")
        known = {name: found.found for name, found in ranges.items() if found.count >= TELLING_ROWS}
        return equalise(graph, known, self.config.equalise)

    def observe(self, graph: ModelGraph, weights: Collection[str]) -> Observed:
        """Values of every input, and their products where rounding needs them."""
        calibrated = self.config.inputs in ("static", "symmetric")
        histograms = {weight: Histogram() for weight in weights if calibrated}
        if histograms:
            self._pass(graph.module, histograms, "calibrating")
        rounded = [name for name in linear_layers(graph.module) if name in weights and self.config.rounding == "gptq"]
        grams = self._grams(graph.module, rounded) if rounded else {}
        return Observed(histograms, grams)

    def _grams(self, module: GraphModule, weights: Collection[str]) -> dict[str, Gram]:
        """Of the inputs of these layers, each row counting by how much it moves the logits."""
        layers = [(name, node) for name, nodes in layer_nodes(module).items() if name in weights for node in nodes]
        sensitivity = Sensitivity(module, layers, self.context.seed)
        grams = {weight: Gram() for weight in weights}
        batches = self.context.data.calibration.batches(BACKWARD_BATCH)
        for images, _ in self.context.progress.track(batches, "looking for what matters", total=len(batches)):
            for weight, x, norms in sensitivity(images):
                grams[weight].observe(x, norms)
        return grams

    def decide(
        self, graph: ModelGraph, weights: Collection[str], observed: Observed
    ) -> tuple[ModelGraph, tuple[FakeQuantSite, ...], dict[str, Tensor]]:
        """The float graph with its weights rounded and its biases corrected, the sites, and scales by parameter name.

        `graph` is changed in place.
        """
        scales: dict[str, Tensor] = {}
        ends = end_layers(graph)
        sites = {w: self._site(graph.module, w, w in ends, observed, scales) for w in weights}
        _tell_apart(graph.module, scales)
        sites = self._with_float_inputs(graph.module, sites, scales)
        shifts = self._mean_shifts(graph.module, sites, scales) if self.config.bias_correction else {}
        originals = {weight: tensor_of(graph.module, weight).detach().clone() for weight in shifts}
        with torch.no_grad():
            for weight, gram in observed.grams.items():
                self._round(graph.module, sites[weight], scales, gram)
            for weight, shift in shifts.items():
                scale = scales[weight_scale_name(weight)]
                _correct_bias(graph.module, sites[weight], scale, originals[weight], shift)
        return graph, tuple(sites.values()), scales

    def _site(
        self, module: GraphModule, weight: str, end: bool, observed: Observed, scales: dict[str, Tensor]
    ) -> FakeQuantSite:
        tensor = tensor_of(module, weight)
        bits, block = weight_form(self.config, end, tensor.dim() == 2, tensor.shape[1])
        scale = weight_scale(tensor, weight_range(bits, block), block)
        scales[weight_scale_name(weight)] = scale if block else pair_safe_scale(tensor, scale)
        site = FakeQuantSite(weight, bits, FLOAT_BITS, block=block)
        if self.config.inputs == "float" or reads_image(module, weight):
            return site
        if self.config.inputs == "dynamic":
            return replace(site, input_bits=8, dynamic=True)
        symmetric = self.config.inputs == "symmetric"
        found = observed.histograms[weight].find_range(self.config.input_bits, self.config.calibrate, symmetric)
        scales[input_scale_name(weight)] = torch.tensor(found.scale)
        return replace(site, input_bits=self.config.input_bits, zero_point=found.zero_point)

    def _with_float_inputs(
        self, module: GraphModule, sites: dict[str, FakeQuantSite], scales: dict[str, Tensor]
    ) -> dict[str, FakeQuantSite]:
        if not self.config.float_inputs or self.config.inputs == "float":
            return sites
        quantisers = {weight: input_quantiser(s, scales.get(input_scale_name(weight))) for weight, s in sites.items()}
        shares = measure_noise(module, quantisers, self.context)
        worst = sorted(shares, key=lambda weight: -shares[weight])[: self.config.float_inputs]
        for weight in worst:
            scales.pop(input_scale_name(weight), None)
        return sites | {w: replace(sites[w], input_bits=FLOAT_BITS, zero_point=None, dynamic=False) for w in worst}

    def _round(self, module: GraphModule, site: FakeQuantSite, scales: dict[str, Tensor], gram: Gram) -> None:
        if gram.total is None:
            return
        tensor, name = tensor_of(module, site.weight), weight_scale_name(site.weight)
        limits, scale = weight_range(site.weight_bits, site.block), scales[name]
        values = gptq(tensor, scale, gram.total, limits, site.block)
        if site.weight_bits <= REFINED_BITS:
            values, scales[name] = refine(tensor, values, scale, gram.total, limits, site.block)
        tensor.copy_(
            values if site.block else limit_pairs((values / scales[name][:, None]).round()) * scales[name][:, None]
        )

    def _mean_shifts(
        self, module: GraphModule, sites: Mapping[str, FakeQuantSite], scales: Mapping[str, Tensor]
    ) -> dict[str, MeanShift]:
        """Mean inputs of the linear layers with a bias, and what quantisation adds to them."""
        biases = _biases(module)
        shifts = {
            weight: MeanShift(input_quantiser(sites[weight], scales.get(input_scale_name(weight))))
            for weight in linear_layers(module)
            if weight in sites and weight in biases
        }
        self._pass(module, shifts, "mean inputs")
        return shifts

    def _pass(self, module: GraphModule, statistics: Mapping[str, Statistic], label: str) -> None:
        predict(Observer(module, statistics), self.context.data.calibration, BATCH, self.context.progress, label)


def weight_form(config: Quantised, end: bool, linear: bool, reduction: int) -> tuple[int, int]:
    """Bits of the weights of a layer, and how many of them share a scale; 0: those of an output channel.

    `end` says whether it is at an end of the model. Blocks need a linear layer, and a reduction that they divide.
    """
    if end and config.end_bits is not None:
        return config.end_bits, 0
    return config.bits, config.block if config.block and linear and reduction % config.block == 0 else 0


def end_layers(graph: ModelGraph) -> frozenset[str]:
    """Weights of the layers that `end_bits` is about."""
    return frozenset(layer.weight for layer in find_anatomy(graph).linears if layer.role in END_ROLES)


def _correct_bias(module: GraphModule, site: FakeQuantSite, scale: Tensor, original: Tensor, shift: MeanShift) -> None:
    """Take off a bias what quantisation adds to the mean output of its layer, inputs being the float ones."""
    mean, moved = shift.means
    axis, limits = 1 if site.block else 0, weight_range(site.weight_bits, site.block)
    values = fake_quant(tensor_of(module, site.weight), scale, 0, axis, *limits, site.block)
    wrong = values.double() @ (mean + moved) - original.double() @ mean
    tensor_of(module, _biases(module)[site.weight]).sub_(wrong)


def _tell_apart(module: GraphModule, scales: dict[str, Tensor]) -> None:
    """Give layers that read one tensor scales that differ in the last digit.

    Runtimes merge equal quantisers, and ONNX Runtime fuses no product whose input has other readers.
    """
    readers: dict[Node, list[str]] = {}
    for weight, nodes in layer_nodes(module).items():
        readers.setdefault(argument(nodes[0], 0), []).append(input_scale_name(weight))
    for names in readers.values():
        for before, name in pairwise([name for name in names if name in scales]):
            if scales[name] <= scales[before]:
                scales[name] = torch.nextafter(scales[before], torch.tensor(torch.inf))


def reads_image(module: GraphModule, weight: str) -> bool:
    """Whether a layer reads the image itself.

    Such an input stays in float: 8 bits of it harm the outputs more than those of a whole block (DeiT-Tiny: alone
    32 dB), for a few percent of the products.
    """
    return any(argument(node, 0).op == "placeholder" for node in layer_nodes(module)[weight])


def _biases(module: GraphModule) -> dict[str, str]:
    """Weight to the bias beside it, where that is a parameter that nothing else uses."""
    found = {}
    for weight, nodes in layer_nodes(module).items():
        bias = argument(nodes[0], 2)
        name = parameter_of(bias) if len(nodes) == 1 and bias is not None else ""
        if name and len(bias.users) == 1:
            found[weight] = name
    return found
