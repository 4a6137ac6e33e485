"""Notes of the report on each quantized layer, and on each layer that stays in float."""

from __future__ import annotations

from collections.abc import Collection

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.edits.fake_quant import constant_layers, layer_nodes
from vitslim.graph.edits.quantize_attention import AttentionSite, attention_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.results import LayerNote
from vitslim.stages.quantize.layers import first_last_layers, reads_image
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.units import FLOAT_BITS, INTEGER_BITS_MAX

NO_INTEGER_KERNEL = "no integer kernel"
"""Note on a layer with activations below 8 bits: ONNX Runtime multiplies them as 8-bit integers."""


def quantized_notes(before: ModelGraph, after: ModelGraph, scheme: QuantScheme) -> tuple[LayerNote, ...]:
    """Return a note on each quantized layer, and on each attention whose matmuls are quantized.

    before: the float graph of the stage.
    """
    ends = first_last_layers(before) if scheme.first_last_bits is not None else frozenset()
    divided = divided_layers(after)
    layers = tuple(
        LayerNote(
            layer=site.weight,
            result=describe(site) + (", each token divided by its largest magnitude" if site.weight in divided else ""),
            reason=_reason(scheme, site, before, site.weight in ends),
        )
        for site in scheme.sites
    )
    return layers + _attention_notes(after, scheme)


def skipped_notes(before: ModelGraph, quantized: Collection[str]) -> tuple[LayerNote, ...]:
    """Return a note on each layer of the float graph that is not among the quantized ones."""
    constant = constant_layers(before.module)
    return tuple(
        LayerNote(
            layer=weight,
            result="stays in float",
            reason="does not depend on the image" if weight in constant else "listed in skip",
        )
        for weight in layer_nodes(before.module)
        if weight not in quantized
    )


def describe(site: FakeQuantSite) -> str:
    """Return, for example, `INT8 weights per output channel, UINT8 activations`."""
    if site.float8:
        activations = "FP8 activations" if site.activation_bits < FLOAT_BITS else "float activations"
        return f"FP8 (E4M3) weights per output channel, {activations}"
    scales = f"in groups of {site.group_size}" if site.group_size else "per output channel"
    scales = "per tensor" if site.per_tensor else scales
    scales += ", integer group scales" if site.integer_scales else ""
    activations = "float activations"
    if site.dynamic:
        activations = "dynamic UINT8 activations"
    elif site.activation_bits < FLOAT_BITS:
        activations = f"{'INT' if site.zero_point is None else 'UINT'}{site.activation_bits} activations"
        activations += f" shifted by {site.shift:g}" if site.shift else ""
        activations += f", {NO_INTEGER_KERNEL}" if site.activation_bits < INTEGER_BITS_MAX else ""
    return f"INT{site.weight_bits} weights {scales}, {activations}"


def _attention_notes(after: ModelGraph, scheme: QuantScheme) -> tuple[LayerNote, ...]:
    return tuple(
        LayerNote(layer=f"{block}.attention", result=describe_attention(site), reason=scheme.calibrate)
        for block, site in attention_sites(after).items()
    )


def describe_attention(site: AttentionSite) -> str:
    """Return, for example, `INT8 queries, keys and values, UINT8 probabilities`."""
    query, key, probability, value = site.bits
    if query == key == value:
        return f"INT{query} queries, keys and values, UINT{probability} probabilities"
    return f"INT{query} queries, INT{key} keys, UINT{probability} probabilities, INT{value} values"


def _reason(scheme: QuantScheme, site: FakeQuantSite, graph: ModelGraph, first_or_last: bool) -> str:
    bits = scheme.first_last_bits if first_or_last and scheme.first_last_bits is not None else scheme.bits
    if site.weight_bits > bits:
        return "among the weights whose rounding adds most noise to the outputs"
    if first_or_last:
        return "first or last layer"
    if scheme.group_size and not site.group_size:
        return f"groups of {scheme.group_size} do not divide its reduction"
    if scheme.integer_matmuls and reads_image(graph.module, site.weight):
        return (
            "reads the image, which stays in float" if site.activation_bits == FLOAT_BITS else "reads the 8-bit pixels"
        )
    if site.activation_bits == FLOAT_BITS and scheme.integer_matmuls:
        return "chosen by `placement: auto`"
    return scheme.calibrate if site.activation_bits < FLOAT_BITS and not site.dynamic else ""
