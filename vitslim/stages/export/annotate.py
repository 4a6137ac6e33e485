"""What the file says about itself: bits and sparsity of each layer, read from the stored numbers, and preprocessing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import vitslim
from vitslim.graph.edits import FakeQuantSite, InsertFakeQuant, Mask
from vitslim.graph.model_graph import ModelGraph
from vitslim.sparsity import TWO_FOUR, is_two_four
from vitslim.units import FLOAT_BITS
from vitslim.workload.onnx_file import METADATA_PREFIX

INTEGER_PRODUCT = "MatMulInteger"
PRODUCTS = ("MatMul", "Gemm", "Conv", INTEGER_PRODUCT)


@dataclass(frozen=True)
class LayerAnnotation:
    """One layer with a weight, as it stands in the file."""

    layer: str
    """Name of the weight."""
    weight_bits: int
    activation_bits: int
    sparsity: str
    """`2:4` along the reduction axis, or `unstructured:0.5`, when the stored weights really are; else empty."""
    granularity: str
    """`channel`, `group:32` or `tensor` for the scales of the weight, empty for a float weight."""


@dataclass(frozen=True)
class StoredWeight:
    """The constant operand of a product, in the layout of the graph: (output channels, reduction...)."""

    name: str
    values: NDArray[Any]
    """Integers when the weight is quantized."""
    scales: NDArray[np.float32] | None
    """Per output channel, per block of one, or a single one; None for a float weight."""
    bits: int
    """Of the type that it is stored in."""


def stored_weight(node: ir.Node) -> StoredWeight | None:
    """The weight of a product; None for a product of two activations and for other nodes.

    Between the stored numbers and the product may stand DequantizeLinear, or Cast and Mul with the scales; those of
    MatMulInteger stand behind it. Codes of 4 bits in blocks, times their whole numbers, are codes of 8 bits.
    """
    operand = node.inputs[1] if node.op_type in PRODUCTS else None
    scales = _scales_behind(node) if node.op_type == INTEGER_PRODUCT else None
    shape: NDArray[Any] | None = None
    multiples: NDArray[Any] | None = None
    while operand is not None and (producer := operand.producer()) is not None:
        if producer.op_type not in {"DequantizeLinear", "Cast", "Mul", "Reshape"}:
            return None
        if producer.op_type != "Cast":
            constant = _constant(producer.inputs[1])
            if constant is None:
                return None
            if producer.op_type == "Reshape":
                shape = constant
            elif constant.dtype.kind == "f":
                scales = constant
            else:
                multiples = constant
        operand = producer.inputs[0]
    if operand is None or operand.const_value is None or operand.name is None:
        return None
    values = operand.const_value.numpy()
    if multiples is not None and shape is not None:
        values = (values.astype(np.int8) * multiples.astype(np.int8)).reshape(shape)
    elif multiples is not None or shape is not None:
        return None
    by_output = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    return StoredWeight(
        operand.name, values if by_output else values.swapaxes(-1, -2), scales, _bits(operand.const_value.dtype)
    )


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    """A constant, cast or not; None for what is computed."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _scales_behind(product: ir.Node) -> NDArray[np.float32] | None:
    """Those of the weight, which `integer_products` multiplies with that of the input, behind the Cast of the sums."""
    cast = product.outputs[0].consumers()[0]
    step = cast.outputs[0].consumers()[0].inputs[1]
    both = step.producer() if step is not None else None
    scale = both.inputs[1] if both is not None else None
    return None if scale is None or scale.const_value is None else scale.const_value.numpy()


def _bits(kind: ir.DataType) -> int:
    return int(kind.bitwidth)


def masked_layers(graph: ModelGraph) -> dict[str, str]:
    """Names of the weights that a stage masked, with the pattern of the mask."""
    masks = [edit for edit in graph.edits if isinstance(edit, Mask)]
    return {name: mask.pattern for mask in masks for name in mask.parameters}


def quantizer_sites(graph: ModelGraph) -> dict[str, FakeQuantSite]:
    """How each quantized layer is quantized, by the name of its weight."""
    return {site.weight: site for edit in graph.edits if isinstance(edit, InsertFakeQuant) for site in edit.sites}


def keeps_mask(weight: StoredWeight, graph: ModelGraph) -> bool:
    """Whether the stored numbers of a masked layer are zero outside its mask, and for 2:4 also keep the pattern."""
    mask = graph.masks[weight.name].cpu().numpy()
    if mask.size != weight.values.size:
        return False
    mask = mask.reshape(weight.values.shape)  # a convolution of patches is stored as a matrix
    if weight.values[~mask].any():
        return False
    return masked_layers(graph)[weight.name] != TWO_FOUR or is_two_four(
        weight.values.reshape(len(weight.values), -1) == 0
    )


def annotate(model: ir.Model, graph: ModelGraph, class_names: Sequence[str]) -> tuple[LayerAnnotation, ...]:
    """Note bits and sparsity on each layer's node, and everything a consumer needs on the model; returns the layers.

    Drops the notes of the exporter. A sparsity pattern is noted only for layers that a stage masked and
    whose stored numbers keep it. What is the same for every image is computed at load, and no layer.
    """
    _drop_exporter_notes(model)
    found, moving = [], set(model.graph.inputs)
    for node in model.graph:
        if moving.isdisjoint(node.inputs):
            continue
        moving.update(node.outputs)
        weight = stored_weight(node)
        if weight is not None and weight.values.ndim > 1:
            layer = _annotation(node, weight, graph)
            found.append(layer)
            _note(node.metadata_props, asdict(layer))
    _note(model.metadata_props, _about(graph, class_names) | {"layers": [asdict(layer) for layer in found]})
    return tuple(found)


def _annotation(node: ir.Node, weight: StoredWeight, graph: ModelGraph) -> LayerAnnotation:
    """True bits are those of the graph where it says so: three-bit codes lie in a four-bit type."""
    pattern = masked_layers(graph).get(weight.name, "")
    quantized = weight.scales is not None
    site = quantizer_sites(graph).get(weight.name) if quantized else None
    granularity = "" if weight.scales is None else "channel" if weight.scales.ndim else "tensor"
    return LayerAnnotation(
        layer=weight.name,
        weight_bits=site.weight_bits if site else weight.bits,
        activation_bits=min(_input_bits(node), site.activation_bits) if site else _input_bits(node),
        sparsity=pattern if pattern and keeps_mask(weight, graph) else "",
        granularity=f"group:{site.group_size}" if site and site.group_size else granularity,
    )


def _input_bits(node: ir.Node) -> int:
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    kind = None if value is None else value.dtype
    return FLOAT_BITS if kind is None else int(kind.bitwidth)


def _about(graph: ModelGraph, class_names: Sequence[str]) -> dict[str, Any]:
    source = graph.source
    channels, height, width = source.image
    names = {"class_names": list(class_names)} if class_names else {}
    return names | {
        "version": vitslim.__version__,
        "model": source.timm,
        "classes": source.classes,
        "input_size": [channels, height, width],
        "mean": list(source.preprocessing.mean),
        "std": list(source.preprocessing.std),
        "interpolation": source.preprocessing.interpolation,
        "crop_pct": source.preprocessing.crop_pct,
    }


def _note(props: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        props[METADATA_PREFIX + key] = value if isinstance(value, str) else json.dumps(value)


def _drop_exporter_notes(model: ir.Model) -> None:
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
