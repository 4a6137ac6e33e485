"""Describe an ONNX file in its own metadata: bits and sparsity of each layer, and the preprocessing of images.

Bits and sparsity come from the stored numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from vitslim.graph.edits import FakeQuantSite, InsertFakeQuant, Mask, QuantizeAttention
from vitslim.graph.edits.fake_quant import activation_scale_name, has_activation_scale, weight_scale_name
from vitslim.graph.edits.quantize_attention import OPERANDS
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import activation_range, weight_range
from vitslim.graph.ops.float8 import FLOAT8_MAX
from vitslim.recipe.formats.file_form import FileForm
from vitslim.sparsity import TWO_FOUR, is_two_four
from vitslim.stages.export.other_metadata import other_metadata
from vitslim.stages.export.stored_weight import StoredWeight, stored_weight
from vitslim.units import FLOAT_BITS
from vitslim.version import __version__
from vitslim.workload.onnx_file import METADATA_PREFIX


@dataclass(frozen=True)
class LayerAnnotation:
    """One layer with a weight, as the file stores it."""

    layer: str
    """Name of the weight."""
    weight_bits: int
    activation_bits: int
    """Of the input activation."""
    sparsity: str
    """`2:4` along the reduction axis, or `unstructured:0.5`, if the stored weights follow it; else empty."""
    granularity: str
    """Of the scales of the weight: `tensor`, `channel` or `group:32`; empty for a float weight."""
    format: str = ""
    """`fp8` for a weight and an activation in 8-bit floats; else empty."""
    weight_limit: float | None = None
    """Largest magnitude that the integers of the weight represent, over all its scales; None for a float weight."""
    activation_limits: tuple[float, float] | None = None
    """Smallest and largest value of the input activation; None for a float or dynamic one."""


def masked_layers(graph: ModelGraph) -> dict[str, str]:
    """Map the name of each masked weight to the pattern of its mask."""
    masks = [edit for edit in graph.edits if isinstance(edit, Mask)]
    return {name: mask.pattern for mask in masks for name in mask.parameters}


def quantizer_sites(graph: ModelGraph) -> dict[str, FakeQuantSite]:
    """Map the name of the weight of each quantized layer to its quantizers."""
    return {site.weight: site for edit in graph.edits if isinstance(edit, InsertFakeQuant) for site in edit.sites}


def keeps_mask(weight: StoredWeight, graph: ModelGraph) -> bool:
    """Whether a stored weight is zero outside its mask, and for 2:4 also follows the pattern."""
    mask = graph.masks[weight.name].cpu().numpy()
    if mask.size != weight.values.size:
        return False
    mask = mask.reshape(weight.values.shape)  # a patch convolution is stored as a matrix
    if weight.values[~mask].any():
        return False
    rows = weight.values.reshape(len(weight.values), -1)
    return masked_layers(graph)[weight.name] != TWO_FOUR or is_two_four(rows == 0, axis=1)


def annotate(
    model: ir.Model, graph: ModelGraph, class_names: Sequence[str], squeezes: Mapping[str, str], form: FileForm
) -> tuple[LayerAnnotation, ...]:
    """Write metadata to the nodes of layers and to the model, and return the layers in graph order.

    Replaces the metadata of the exporter. A layer gets a sparsity pattern only if a stage masked it and the stored
    weight follows the mask. Matmuls of constants are no layers: runtimes compute them when they load the file.
    squeezes: a description of the token squeeze of each block that has one.
    """
    _drop_metadata(model)
    found, computed = [], set(model.graph.inputs)
    for node in model.graph:
        if computed.isdisjoint(node.inputs):
            continue
        computed.update(node.outputs)
        weight = stored_weight(node)
        if weight is not None and weight.values.ndim > 1:
            layer = _annotation(node, weight, graph)
            found.append(layer)
            _write_metadata(node.metadata_props, asdict(layer))
    described: dict[str, Any] = {"layers": [asdict(layer) for layer in found]}
    if squeezes:
        described["token_squeezes"] = dict(squeezes)
    _write_metadata(model.metadata_props, _model_metadata(graph, class_names) | described)
    model.metadata_props.update(other_metadata(graph.source, class_names, form))
    return tuple(found)


def read_annotations(metadata: Mapping[str, Any]) -> tuple[LayerAnnotation, ...]:
    """Return the layers that `annotate` wrote to the metadata of a model, in graph order."""
    return tuple(
        LayerAnnotation(**one | {"activation_limits": one["activation_limits"] and tuple(one["activation_limits"])})
        for one in metadata["layers"]
    )


def _annotation(node: ir.Node, weight: StoredWeight, graph: ModelGraph) -> LayerAnnotation:
    """Bits are those of the graph, which may be below those of the stored type: 3-bit weights are stored as INT4."""
    pattern = masked_layers(graph).get(weight.name, "")
    quantized = weight.scales is not None
    site = quantizer_sites(graph).get(weight.name) if quantized else None
    granularity = "" if weight.scales is None else "channel" if weight.scales.ndim else "tensor"
    return LayerAnnotation(
        layer=weight.name,
        weight_bits=site.weight_bits if site else weight.bits,
        activation_bits=min(_activation_bits(node), site.activation_bits) if site else _activation_bits(node),
        sparsity=pattern if pattern and keeps_mask(weight, graph) else "",
        granularity=f"group:{site.group_size}" if site and site.group_size else granularity,
        format="fp8" if site and site.float8 else "",
        weight_limit=_weight_limit(graph, site) if site else None,
        activation_limits=_activation_limits(graph, site) if site and has_activation_scale(site) else None,
    )


def _weight_limit(graph: ModelGraph, site: FakeQuantSite) -> float:
    bits, group_size = site.matmul_form
    largest = FLOAT8_MAX if site.float8 else max(map(abs, weight_range(bits, group_size)))
    return float(tensor_of(graph.module, weight_scale_name(site.weight)).detach().max()) * largest


def _activation_limits(graph: ModelGraph, site: FakeQuantSite) -> tuple[float, float]:
    scale = float(tensor_of(graph.module, activation_scale_name(site.weight)).detach())
    if site.float8:
        return -FLOAT8_MAX * scale, FLOAT8_MAX * scale
    low, high = activation_range(site.activation_bits, site.zero_point, site.narrow)
    zero = site.zero_point or 0
    return scale * (low - zero) - site.shift, scale * (high - zero) - site.shift


def _activation_bits(node: ir.Node) -> int:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    kind = None if value is None else value.dtype
    return FLOAT_BITS if kind is None else int(kind.bitwidth)


def _model_metadata(graph: ModelGraph, class_names: Sequence[str]) -> dict[str, Any]:
    source = graph.source
    channels, height, width = source.image
    names: dict[str, Any] = {"class_names": list(class_names)} if class_names else {}
    if source.class_rule:
        names["class_rule"] = source.class_rule
    for edit in graph.edits:
        if isinstance(edit, InsertFakeQuant):
            names["reduce_range"] = edit.reduce_range
        if isinstance(edit, QuantizeAttention):
            names["attention_bits"] = {site.block: dict(zip(OPERANDS, site.bits, strict=True)) for site in edit.sites}
    return names | {
        "version": __version__,
        "model": source.timm,
        "task": source.task,
        "classes": source.classes,
        "input_size": [channels, height, width],
        "mean": list(source.preprocessing.mean),
        "std": list(source.preprocessing.std),
        "interpolation": source.preprocessing.interpolation,
        "crop_pct": source.preprocessing.crop_pct,
        "crop_mode": source.preprocessing.crop_mode,
    }


def _write_metadata(props: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        props[METADATA_PREFIX + key] = value if isinstance(value, str) else json.dumps(value)


def _drop_metadata(model: ir.Model) -> None:
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
