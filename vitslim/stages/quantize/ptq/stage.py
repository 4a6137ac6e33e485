"""The stage `quantize: {method: ptq}`: equalize, observe, choose scales, round, insert quantizers, correct biases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from vitslim.errors import Problem, closest
from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.edits.fake_quant import (
    constant_layers,
    insert_fake_quant,
    layer_nodes,
    layer_of,
    quantized_layers,
)
from vitslim.graph.edits.quantize_attention import attention_blocks
from vitslim.graph.edits.read_pixels import PIXEL_BITS
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.graph.sketch import LayerBits, ModelSketch, SketchLinear
from vitslim.recipe.stages import Ptq
from vitslim.results import LayerNote
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.quantize.calibration.observe import FORWARD_BATCH
from vitslim.stages.quantize.ptq.forms import END_ROLES, end_layers, reads_image, weight_form, widened
from vitslim.stages.quantize.ptq.passes import Calibration
from vitslim.training.evaluate import agreement, predict, sqnr_db
from vitslim.units import FLOAT_BITS

JUDGED_IMAGES = 128
"""The quantized graph is compared with the float graph on so many of the calibration images, at most."""


class PtqStage:
    """Post-training quantization: weights per output channel or block, inputs of layers per tensor."""

    def __init__(self, config: Ptq) -> None:
        self.config = config

    def requires(self, sketch: ModelSketch) -> list[Problem]:
        """Layers to skip exist, keys fit together, and something is left to quantize."""
        known = {layer_of(linear.weight): linear.weight for linear in sketch.linears}
        problems = [
            Problem("skip", f"the model has no layer '{name}'", closest(name, known))
            for name in self.config.skip
            if layer_of(name) not in known
        ]
        if sketch.bits:
            problems.append(Problem("method", "the model is quantized already", "keep one quantize stage"))
        if self.config.first_last_bits is not None and not any(linear.role in END_ROLES for linear in sketch.linears):
            message = "the model has neither a patch embedding nor a head that is a layer"
            problems.append(Problem("first_last_bits", message, "leave it out"))
        chosen = self._chosen_of(sketch)
        if chosen and self.config.average_bits is not None and not self._wide(self._linears(sketch)):
            message = f"a mean of {self.config.average_bits:g} bits has no room for eight bits of any weight"
            problems.append(Problem("average_bits", message, f"write more than {self._mean_bits(sketch):.2f}"))
        if not problems and not chosen:
            problems.append(Problem("skip", "every layer is skipped: nothing is left to quantize", "shorten the list"))
        if self.config.attention and not sketch.attending:
            problems.append(Problem("attention", "the model has no attention that can be quantized", "leave it out"))
        return problems

    def estimate(self, sketch: ModelSketch) -> ModelSketch:
        """The same model with fewer bits in all layers that are not skipped.

        A guess where calibration decides which inputs stay in float, and which weights get more bits.
        """
        linears = self._linears(sketch)
        wide = self._wide(linears)
        for linear in linears:
            sketch = sketch.with_bits({linear.weight}, self._bits(linear, linear.weight in wide))
        if self.config.attention:
            sketch = sketch.with_attention_bits(self.config.activation_bits)
        return sketch.as_guess() if self.config.average_bits is not None else sketch

    def apply(self, graph: ModelGraph, context: StageContext) -> StageResult:
        """Everything is decided on the calibration images, through the float graph."""
        weights = self._chosen(graph)
        calibration = Calibration(self.config, context)
        rotated, turned, fixed = calibration.rotate(graph)
        prepared = calibration.quantize_attention(
            calibration.read_pixels(calibration.equalize(rotated, weights), weights)
        )
        sites, scales = calibration.place(prepared, weights, calibration.observe(prepared, weights))
        rounded = calibration.round(prepared, sites, scales)
        quantized = insert_fake_quant(rounded, tuple(sites.values()), scales)
        images = context.data.calibration
        judged, batch = images.balanced(JUDGED_IMAGES), images_at_once(graph, FORWARD_BATCH)
        before, _ = predict(graph.module, judged, batch, context.progress, "comparing: float model")
        after, _ = predict(quantized.module, judged, batch, context.progress, "comparing: quantized model")
        return StageResult(
            quantized,
            changes=(
                *turned,
                *self._changes(graph, tuple(sites.values()), divided_layers(prepared)),
                *self._attention_changes(graph),
            ),
            skipped=(*fixed, *self._skipped(graph, sites)),
            metrics={
                "calibration_images": float(len(images)),
                "rounding_images": float(len(calibration.rounding_set(prepared))),
                "calibration_sqnr_db": sqnr_db(before, after),
                "calibration_agreement": agreement(before, after),
            },
        )

    def ensures(self, before: ModelGraph, after: ModelGraph) -> list[Problem]:
        """Every chosen layer is quantized, with positive finite scales."""
        done = quantized_layers(after.module)
        missing = [weight for weight in self._chosen(before) if weight not in done]
        problems = [Problem(weight, "is not quantized after the stage") for weight in missing]
        scales = {name: p for name, p in after.parameters().items() if name.startswith(QUANTIZER_PREFIX)}
        bad = [name for name, scale in scales.items() if not bool(((scale > 0) & scale.isfinite()).all())]
        return problems + [Problem(name, "a scale is not a positive finite number") for name in bad]

    def _linears(self, sketch: ModelSketch) -> list[SketchLinear]:
        chosen = set(self._chosen_of(sketch))
        return [linear for linear in sketch.linears if linear.weight in chosen]

    def _mean_bits(self, sketch: ModelSketch) -> float:
        """Of all weights that are quantized, where none gets more."""
        linears = self._linears(sketch)
        sizes = [linear.in_features * linear.out_features for linear in linears]
        return sum(self._bits(linear).weight * size for linear, size in zip(linears, sizes, strict=True)) / sum(sizes)

    def _wide(self, linears: Sequence[SketchLinear]) -> frozenset[str]:
        """As many weights as may get more bits, as if each harmed the outputs by its size."""
        if self.config.average_bits is None:
            return frozenset()
        sizes = {linear.weight: linear.in_features * linear.out_features for linear in linears}
        bits = {linear.weight: self._bits(linear).weight for linear in linears}
        return widened(sizes, sizes, bits, self.config.average_bits)

    def _bits(self, linear: SketchLinear, wide: bool = False) -> LayerBits:
        form = weight_form(self.config, linear.role in END_ROLES, not linear.convolution, linear.in_features, wide)
        as_pixels = linear.reads_pixels and self.config.activation_bits == PIXEL_BITS
        in_float = self.config.activations == "float" or (linear.reads_image and not as_pixels)
        return LayerBits(
            form.bits, FLOAT_BITS if in_float else self.config.activation_bits, form.block, form.integer_scales
        )

    def _chosen_of(self, sketch: ModelSketch) -> tuple[str, ...]:
        return self._unskipped(linear.weight for linear in sketch.linears if not linear.constant)

    def _chosen(self, graph: ModelGraph) -> tuple[str, ...]:
        constant = constant_layers(graph.module)
        return self._unskipped(weight for weight in layer_nodes(graph.module) if weight not in constant)

    def _unskipped(self, weights: Iterable[str]) -> tuple[str, ...]:
        skip = {layer_of(name) for name in self.config.skip}
        return tuple(weight for weight in weights if layer_of(weight) not in skip)

    def _changes(
        self, graph: ModelGraph, sites: tuple[FakeQuantSite, ...], divided: Collection[str]
    ) -> tuple[LayerNote, ...]:
        ends = end_layers(graph) if self.config.first_last_bits is not None else frozenset()
        return tuple(
            LayerNote(
                layer=site.weight,
                result=describe(site) + (", each token divided by its largest" if site.weight in divided else ""),
                reason=self._reason(site, graph, site.weight in ends),
            )
            for site in sites
        )

    def _attention_changes(self, graph: ModelGraph) -> tuple[LayerNote, ...]:
        bits = self.config.activation_bits
        what = f"INT{bits} queries, keys and values, UINT{bits} probabilities"
        blocks = attention_blocks(graph) if self.config.attention else ()
        return tuple(LayerNote(layer=f"{name}.attention", result=what, reason=self.config.calibrate) for name in blocks)

    def _reason(self, site: FakeQuantSite, graph: ModelGraph, end: bool) -> str:
        asked = self.config.first_last_bits if end and self.config.first_last_bits is not None else self.config.bits
        if site.weight_bits > asked:
            return "among the weights whose few bits disturb the outputs most"
        if end:
            return "at an end of the model"
        if self.config.group_size and not site.group_size:
            return f"its reduction has no blocks of {self.config.group_size}"
        if self.config.activations != "float" and reads_image(graph.module, site.weight):
            return "the image stays in float" if site.activation_bits == FLOAT_BITS else "pixels are codes as they are"
        if site.activation_bits == FLOAT_BITS and self.config.activations != "float":
            return "among the inputs whose quantization disturbs the outputs most"
        return self.config.calibrate if site.activation_bits < FLOAT_BITS and not site.dynamic else ""

    def _skipped(self, graph: ModelGraph, chosen: Collection[str]) -> tuple[LayerNote, ...]:
        constant = constant_layers(graph.module)
        return tuple(
            LayerNote(
                layer=weight,
                result="stays in float",
                reason="the same for every image" if weight in constant else "listed in skip",
            )
            for weight in layer_nodes(graph.module)
            if weight not in chosen
        )


def describe(site: FakeQuantSite) -> str:
    """`INT8 weights per output channel, UINT8 inputs`."""
    sharing = f"in blocks of {site.group_size}" if site.group_size else "per output channel"
    sharing += ", scales whole multiples of the channel's" if site.integer_scales else ""
    inputs = "float inputs"
    if site.dynamic:
        inputs = "dynamic UINT8 inputs"
    elif site.activation_bits < FLOAT_BITS:
        inputs = f"{'INT' if site.zero_point is None else 'UINT'}{site.activation_bits} inputs"
    return f"INT{site.weight_bits} weights {sharing}, {inputs}"
