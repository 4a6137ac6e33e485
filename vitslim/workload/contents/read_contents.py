"""Read the contents of any ONNX file, and check the claims that it makes about itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import TensorProto

from vitslim.workload.contents.annotations import (
    LAYERS,
    find_annotation,
    listed_annotations,
    model_metadata,
    node_annotation,
)
from vitslim.workload.contents.file_contents import Annotation, FileContents, Layer, Violation
from vitslim.workload.contents.read_layers import activation_matmuls, read_layers
from vitslim.workload.contents.scales import invalid_scales, quantizer_constants
from vitslim.workload.integrity import tensor_bytes
from vitslim.workload.onnx_graph import LAYER, OnnxGraph


def name_nodes(model: onnx.ModelProto) -> bool:
    """Give a unique name to each node without one, in place; return whether any node was renamed."""
    counts = Counter(node.name for node in model.graph.node)
    taken, changed = set(counts), False
    for index, node in enumerate(model.graph.node):
        if not node.name or counts[node.name] > 1:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name, changed = name, True
            taken.add(name)
    return changed


def read_contents(model: onnx.ModelProto) -> FileContents:
    """Return the contents of a model from `load_onnx` in which every node has a name (`name_nodes`).

    Dynamic sizes stay dynamic; operators that vitslim does not know are counted. Raises InputError for an incomplete
    graph, or a weight whose shape does not match that of its quantizer.
    """
    graph = OnnxGraph(model, batch=None)
    metadata = model_metadata(model)
    listed, malformed = listed_annotations(metadata)
    layers, violations = read_layers(graph, listed)
    by_output = {node.output[0]: layer.name for node in graph.nodes for layer in layers if layer.node == node.name}
    quantizers, weights = quantizer_constants(graph), {layer.weight for layer in layers}
    sizes = {name: tensor_bytes(tensor) for name, tensor in graph.initializers.items()}
    return FileContents(
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=dict(_signatures(value for value in model.graph.input if value.name in graph.inputs)),
        outputs=dict(_signatures(model.graph.output)),
        metadata={key: value for key, value in metadata.items() if key != LAYERS},
        operators=dict(Counter(_type(node) for node in graph.nodes).most_common()),
        layers=layers,
        activation_matmuls=activation_matmuls(graph),
        scale_bytes=sum(size for name, size in sizes.items() if name in quantizers - weights),
        other_bytes=sum(size for name, size in sizes.items() if name not in quantizers | weights),
        annotations=listed,
        violations=(*malformed, *_stray(graph, layers, listed), *violations, *invalid_scales(graph, by_output)),
    )


def _stray(graph: OnnxGraph, layers: Sequence[Layer], listed: Sequence[Annotation]) -> Iterator[Violation]:
    """Yield annotations without a layer, malformed ones, and layers whose two annotations differ."""
    for annotation in listed:
        described = [layer for layer in layers if find_annotation([annotation], layer.name, layer.weight)]
        if not described:
            yield Violation(annotation.layer, "an annotated layer is in the graph", "no layer of this name")
        for layer in described:
            noted = layer.annotation
            if noted is not None and noted != annotation and noted.layer == annotation.layer:
                found = _difference(noted, annotation)
                yield Violation(layer.name, "annotations of node and model are equal", found)
    nodes = {layer.node for layer in layers}
    for node in graph.nodes:
        name = next((prop.value for prop in node.metadata_props if prop.key == LAYER), None)
        if name is not None and node.name not in nodes:
            yield Violation(name, "an annotated node is a layer", f"{node.op_type} '{node.name}' has no weight")
        elif name is not None and node_annotation(node) is None:
            yield Violation(name, "the annotation of a node describes a layer", f"that of '{node.name}' is malformed")


def _difference(noted: Annotation, listed: Annotation) -> str:
    keys = ("weight_bits", "activation_bits", "sparsity", "granularity", "format")
    differing = [key for key in keys if getattr(noted, key) != getattr(listed, key)]
    return ", ".join(f"{key} {getattr(noted, key)!r} and {getattr(listed, key)!r}" for key in differing)


def _signatures(values: Iterable[onnx.ValueInfoProto]) -> Iterator[tuple[str, str]]:
    for value in values:
        tensor = value.type.tensor_type
        dims = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
        known = tensor.elem_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(tensor.elem_type).lower() if known and tensor.elem_type else "unknown type"
        yield value.name, " x ".join([kind, *dims]).replace(" x ", " ", 1)


def _type(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
