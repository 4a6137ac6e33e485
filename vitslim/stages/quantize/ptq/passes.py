"""The passes over calibration images that decide how a float graph is quantized."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import compress, pairwise

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.data import Dataset
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import activation_scale_name, has_activation_scale, layer_nodes
from vitslim.graph.edits.quantize_attention import attention_blocks, decomposed, operands, quantize_attention
from vitslim.graph.edits.read_pixels import PIXEL, PIXEL_BITS, pixel_layers, read_pixels, reads_pixels
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, tensor_of
from vitslim.recipe.stages import Ptq
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.calibration.observe import (
    FORWARD_BATCH,
    Observer,
    Operands,
    Statistic,
    input_quantizer,
    layer_inputs,
    solvable_layers,
)
from vitslim.stages.quantize.calibration.ranges import Histogram
from vitslim.stages.quantize.noise import measure_weight_noise
from vitslim.stages.quantize.ptq.forms import WIDE_BITS, end_layers, reads_image, weight_form, widened
from vitslim.stages.quantize.ptq.weights import REFINED_BITS, pair_limit, rounded, weight_scales
from vitslim.stages.quantize.rotation import find_streams, rotate
from vitslim.stages.quantize.smoothing.search import Equalizer
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layerwise import COPIES, LayerSolver
from vitslim.training.evaluate import predict
from vitslim.units import FLOAT_BITS


class Calibration:
    """Runs the passes that a recipe asks for, on its calibration images."""

    def __init__(self, config: Ptq, context: StageContext) -> None:
        self.config, self.context, self.pairs = config, context, pair_limit(config)

    def rotate(self, graph: ModelGraph) -> tuple[ModelGraph, tuple[LayerNote, ...], tuple[LayerNote, ...]]:
        """A graph with turned residual streams where the recipe asks for it, and notes on those and on all others."""
        if not self.config.rotate:
            return graph, (), ()
        streams, fixed = find_streams(graph)
        turned = tuple(LayerNote(layer=one.name, result="in a random basis") for one in streams)
        left = tuple(LayerNote(layer=name, result="stays in its basis", reason=why) for name, why in fixed.items())
        return rotate(graph, streams, self.context.seed), turned, left

    def equalize(self, graph: ModelGraph, weights: Collection[str]) -> ModelGraph:
        """A copy whose inputs are spread evenly over their channels, where the recipe asks for it."""
        if not self.config.smooth or self.config.activations == "float":
            return graph.copy()
        return Equalizer(self.config, self.context)(graph, weights)

    def read_pixels(self, graph: ModelGraph, weights: Collection[str]) -> ModelGraph:
        """A graph whose layers read the image in codes that lose nothing, where inputs have the bits for it."""
        if self.config.activations == "float" or self.config.activation_bits != PIXEL_BITS:
            return graph
        layers = layer_nodes(graph.module)
        able = [all(reads_pixels(node, tensor_of(graph.module, w)) for node in layers[w]) for w in weights]
        if not any(able):
            return graph
        mean, std = self.context.data.calibration.source.normalization
        return read_pixels(graph, tuple(compress(weights, able)), mean, std)

    def quantize_attention(self, graph: ModelGraph) -> ModelGraph:
        """A graph whose attention products are of codes, where the recipe asks for it."""
        if not self.config.attention:
            return graph
        blocks = attention_blocks(graph)
        plain = decomposed(graph, blocks)
        places = operands(plain, blocks)
        seen = {name: Histogram() for name in places}
        watched = {name: [(operand.matmul, operand.place)] for name, operand in places.items()}
        self._pass(plain, seen, "calibrating attention", watched)
        ranges = {
            name: seen[name].find_range(self.config.activation_bits, self.config.calibrate, operand.zero_point is None)
            for name, operand in places.items()
        }
        scales = {name: torch.tensor(found.scale) for name, found in ranges.items()}
        return quantize_attention(graph, blocks, self.config.activation_bits, scales)

    def observe(self, graph: ModelGraph, weights: Collection[str]) -> Mapping[str, Histogram]:
        """Values of every input by weight name, where ranges are calibrated."""
        if self.config.activations != "static":
            return {}
        histograms = {weight: Histogram() for weight in weights}
        self._pass(graph, histograms, "calibrating")
        return histograms

    def place(
        self, graph: ModelGraph, weights: Collection[str], histograms: Mapping[str, Histogram]
    ) -> tuple[dict[str, FakeQuantSite], dict[str, Tensor]]:
        """Sites by weight name, and scales by parameter name."""
        scales: dict[str, Tensor] = {}
        sites = {w: self._site(graph, site, histograms, scales) for w, site in self._weights(graph, weights).items()}
        _tell_apart(graph.module, scales)
        return sites, scales

    def round(self, graph: ModelGraph, sites: Mapping[str, FakeQuantSite], scales: dict[str, Tensor]) -> ModelGraph:
        """A graph with rounded weights and moved biases, where the recipe asks for either.

        Layer after layer, each for the quantized inputs that those before it leave. Scales may change in place.
        """
        gptq_asked = self.config.rounding == "gptq"
        whole = any(site.integer_scales for site in sites.values())
        if not gptq_asked and not self.config.bias_correction and not whole:
            return graph

        def solve(weight: str, matrix: Tensor, curvature: Curvature) -> Tensor:
            return rounded(sites[weight], matrix, scales, curvature if gptq_asked else None, self.pairs)

        solver = LayerSolver(
            torch.cat([images for images, _ in self.rounding_set(graph).batches(FORWARD_BATCH)]),
            self.context.progress,
            "rounding",
            inputs={
                w: input_quantizer(s, scales[activation_scale_name(w)])
                for w, s in sites.items()
                if has_activation_scale(s)
            },
            sensitive=gptq_asked,
            joint=[w for w, s in sites.items() if s.weight_bits <= REFINED_BITS],
            biases=self.config.bias_correction,
        )
        return solver(graph, [weight for weight in solvable_layers(graph.module) if weight in sites], solve)

    def rounding_set(self, graph: ModelGraph) -> Dataset:
        """The calibration images whose tensors fit into memory at once, of all classes."""
        calibration = self.context.data.calibration
        return calibration.balanced(images_at_once(graph, len(calibration), COPIES))

    def _weights(self, graph: ModelGraph, weights: Collection[str]) -> dict[str, FakeQuantSite]:
        """Sites whose inputs are still in float. Where fewer bits disturb the outputs most, weights keep more."""
        ends = end_layers(graph)
        found = {w: self._weight(graph, w, w in ends) for w in weights}
        if self.config.average_bits is None:
            return found
        tensors = {w: tensor_of(graph.module, w).detach() for w in weights}
        nearest = {w: rounded(site, tensors[w], weight_scales(tensors[w], site, self.pairs), None, self.pairs)
                   for w, site in found.items() if site.weight_bits < WIDE_BITS}  # fmt: skip
        shares = measure_weight_noise(graph, nearest, self.context)
        sizes, bits = ({w: tensors[w].numel() for w in weights}, {w: site.weight_bits for w, site in found.items()})
        wide = widened(shares, sizes, bits, self.config.average_bits)
        return found | {w: self._weight(graph, w, w in ends, wide=True) for w in wide}

    def _weight(self, graph: ModelGraph, weight: str, end: bool, wide: bool = False) -> FakeQuantSite:
        tensor = tensor_of(graph.module, weight)
        bits, block, whole = weight_form(self.config, end, tensor.dim() == 2, tensor.shape[1], wide)
        zeros = self.config.zero_points and block > 0
        return FakeQuantSite(weight, bits, FLOAT_BITS, group_size=block, weight_zero_points=zeros, integer_scales=whole)

    def _site(
        self, graph: ModelGraph, site: FakeQuantSite, seen: Mapping[str, Histogram], scales: dict[str, Tensor]
    ) -> FakeQuantSite:
        weight = site.weight
        scales |= weight_scales(tensor_of(graph.module, weight), site, self.pairs)
        if weight in pixel_layers(graph):
            scales[activation_scale_name(weight)] = torch.tensor(PIXEL)
            return replace(site, activation_bits=PIXEL_BITS)
        if self.config.activations == "float" or reads_image(graph.module, weight):
            return site
        if self.config.activations == "dynamic":
            return replace(site, activation_bits=8, dynamic=True)
        symmetric = self.config.symmetric
        found = seen[weight].find_range(self.config.activation_bits, self.config.calibrate, symmetric)
        scales[activation_scale_name(weight)] = torch.tensor(found.scale)
        return replace(site, activation_bits=self.config.activation_bits, zero_point=found.zero_point)

    def _pass(
        self, graph: ModelGraph, statistics: Mapping[str, Statistic], label: str, places: Operands | None = None
    ) -> None:
        observer = Observer(graph.module, statistics, places or layer_inputs(graph.module))
        batch = images_at_once(graph, FORWARD_BATCH)
        predict(observer, self.context.data.calibration, batch, self.context.progress, label)


def _tell_apart(module: GraphModule, scales: dict[str, Tensor]) -> None:
    """Give layers that read one tensor scales that differ in the last digit.

    Runtimes merge equal quantizers, and ONNX Runtime fuses no product whose input has other readers.
    """
    readers: dict[Node, list[str]] = {}
    for weight, nodes in layer_nodes(module).items():
        readers.setdefault(argument(nodes[0], 0), []).append(activation_scale_name(weight))
    for names in readers.values():
        for before, name in pairwise([name for name in names if name in scales]):
            if scales[name] <= scales[before]:
                scales[name] = torch.nextafter(scales[before], torch.tensor(torch.inf))
