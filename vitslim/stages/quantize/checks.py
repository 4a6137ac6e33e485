"""Conditions of all quantization methods: on the model before, on the estimate, and on the graph after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vitslim.errors import Problem, closest
from vitslim.graph.edits.fake_quant import layer_of, quantized_layers
from vitslim.graph.edits.quantize_attention import OPERANDS
from vitslim.graph.edits.read_pixels import PIXEL_BITS
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.graph.sketch import LayerBits, ModelSketch, SketchLinear
from vitslim.stages.quantize.layers import FIRST_LAST_ROLES, quantizable_layers, sketched_layers
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.weights.forms import eight_bit_weights, weight_form
from vitslim.units import FLOAT_BITS


def model_problems(scheme: QuantScheme, sketch: ModelSketch) -> list[Problem]:
    """Return the keys that do not fit the model."""
    problems = list(_key_problems(scheme, sketch))
    if not problems and not sketched_layers(sketch, scheme.skip):
        problems.append(
            Problem("skip", "all layers are in `skip`, so there is nothing to quantize", "remove layers from the list")
        )
    if scheme.attention and not sketch.blocks_with_attention:
        problems.append(Problem("attention", "the model has no attention that can be quantized", "remove it"))
    return problems


def quantized_sketch(scheme: QuantScheme, sketch: ModelSketch) -> ModelSketch:
    """Return the sketch with fewer bits in all quantized layers; approximate with `average_bits`."""
    linears = sketched_layers(sketch, scheme.skip)
    raised = _raised(scheme, linears)
    for linear in linears:
        sketch = sketch.with_bits({linear.weight}, _bits(scheme, linear, linear.weight in raised))
    if scheme.attention:
        blocks = sketch.blocks_with_attention
        sketch = sketch.with_attention_bits({block: scheme.attention_site(block).bits for block in blocks})
    return sketch.as_approximate() if scheme.average_bits is not None else sketch


def graph_problems(scheme: QuantScheme, before: ModelGraph, after: ModelGraph) -> list[Problem]:
    """Return the chosen layers that are not quantized, and the scales that are not positive and finite."""
    done = quantized_layers(after.module)
    missing = [weight for weight in quantizable_layers(before, scheme.skip) if weight not in done]
    problems = [Problem(weight, "is not quantized after the stage") for weight in missing]
    scales = {name: p for name, p in after.parameters().items() if name.startswith(QUANTIZER_PREFIX)}
    invalid = [name for name, scale in scales.items() if not bool(((scale > 0) & scale.isfinite()).all())]
    return problems + [Problem(name, "a scale is not a positive finite number") for name in invalid]


def _key_problems(scheme: QuantScheme, sketch: ModelSketch) -> Iterator[Problem]:
    known = {layer_of(linear.weight): linear.weight for linear in sketch.linears}
    for name in scheme.skip:
        if layer_of(name) not in known:
            yield Problem("skip", f"the model has no layer '{name}'", closest(name, known))
    operands = {f"{b}.attention.{name}": b for b in sketch.blocks_with_attention for name in OPERANDS}
    for name in scheme.layer_bits:
        if name not in {**known, **(operands if scheme.attention else {})}:
            yield Problem(
                "layer_bits", f"the model has no quantized layer '{name}'", closest(name, {**known, **operands})
            )
    if sketch.bits:
        yield Problem("method", "the model is already quantized", "keep one quantize stage")
    if scheme.first_last_bits is not None and not any(one.role in FIRST_LAST_ROLES for one in sketch.linears):
        yield Problem("first_last_bits", "the model has no patch embedding and no head", "remove it")
    linears = sketched_layers(sketch, scheme.skip)
    if linears and scheme.average_bits is not None and not _raised(scheme, linears):
        message = f"an average of {scheme.average_bits:g} bits is too low for 8 bits in any weight"
        yield Problem("average_bits", message, f"set it above {_average_bits(scheme, linears):.2f}")


def _average_bits(scheme: QuantScheme, linears: Sequence[SketchLinear]) -> float:
    """Return the average bits of all quantized weights, without those that `average_bits` raises."""
    sizes = [linear.in_features * linear.out_features for linear in linears]
    return sum(_bits(scheme, linear).weight * size for linear, size in zip(linears, sizes, strict=True)) / sum(sizes)


def _raised(scheme: QuantScheme, linears: Sequence[SketchLinear]) -> frozenset[str]:
    """Return as many weights as may get more bits, as if the noise of each were its size."""
    if scheme.average_bits is None:
        return frozenset()
    sizes = {linear.weight: linear.in_features * linear.out_features for linear in linears}
    bits = {linear.weight: _bits(scheme, linear).weight for linear in linears}
    return eight_bit_weights(sizes, sizes, bits, scheme.average_bits)


def _bits(scheme: QuantScheme, linear: SketchLinear, more_bits: bool = False) -> LayerBits:
    first_or_last = linear.role in FIRST_LAST_ROLES
    form = weight_form(scheme, first_or_last, not linear.convolution, linear.in_features, more_bits)
    as_pixels = linear.reads_pixels and scheme.activation_bits == PIXEL_BITS and not scheme.float8
    in_float = not scheme.integer_matmuls or (linear.reads_image and not as_pixels)
    activation = PIXEL_BITS if linear.reads_pixels else scheme.bits_of_activation(linear.weight)
    bits = scheme.own_weight_bits(linear.weight) or form.bits
    return LayerBits(bits, FLOAT_BITS if in_float else activation, form.group_size, form.integer_scales,
                     float8=scheme.float8)  # fmt: skip
