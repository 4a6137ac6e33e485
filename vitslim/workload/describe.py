"""From an ONNX file, ours or anybody's, to what it holds and which of its promises it breaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import TensorProto

from vitslim.workload.annotations import LAYERS, find_annotation, listed_annotations, node_annotation, read_notes
from vitslim.workload.facts import Annotation, BrokenPromise, FileFacts, Layer
from vitslim.workload.layers import activation_products, read_layers
from vitslim.workload.onnx_graph import LAYER, OnnxGraph
from vitslim.workload.scales import broken_scales, quantizer_constants
from vitslim.workload.whole import tensor_bytes


def name_nodes(model: onnx.ModelProto) -> bool:
    """Give each node without a name of its own one, in place; whether any needed it."""
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


def describe(model: onnx.ModelProto) -> FileFacts:
    """What a model as `load_onnx` gives it holds, with a name on every node (`name_nodes`).

    Dynamic sizes stay open; operators that vitslim does not know are counted. Raises InputError for a graph that is
    not whole, or a weight that does not fit its quantizer.
    """
    graph = OnnxGraph(model, batch=None)
    notes = read_notes(model)
    listed, unreadable = listed_annotations(notes)
    layers, broken = read_layers(graph, listed)
    by_output = {node.output[0]: layer.name for node in graph.nodes for layer in layers if layer.node == node.name}
    quantizers, weights = quantizer_constants(graph), {layer.weight for layer in layers}
    sizes = {name: tensor_bytes(tensor) for name, tensor in graph.initializers.items()}
    return FileFacts(
        ir_version=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=dict(_signatures(value for value in model.graph.input if value.name in graph.inputs)),
        outputs=dict(_signatures(model.graph.output)),
        metadata={key: value for key, value in notes.items() if key != LAYERS},
        operators=dict(Counter(_type(node) for node in graph.nodes).most_common()),
        layers=layers,
        activation_products=activation_products(graph),
        scale_bytes=sum(size for name, size in sizes.items() if name in quantizers - weights),
        other_bytes=sum(size for name, size in sizes.items() if name not in quantizers | weights),
        annotations=listed,
        broken=(*unreadable, *_stray(graph, layers, listed), *broken, *broken_scales(graph, by_output)),
    )


def _stray(graph: OnnxGraph, layers: Sequence[Layer], listed: Sequence[Annotation]) -> Iterator[BrokenPromise]:
    """Annotations without a layer, notes that cannot be read, and layers that are described in two ways."""
    for annotation in listed:
        described = [layer for layer in layers if find_annotation([annotation], layer.name, layer.weight)]
        if not described:
            yield BrokenPromise(annotation.layer, "an annotated layer is in the graph", "no layer of this name")
        for layer in described:
            noted = layer.annotation
            if noted is not None and noted != annotation and noted.layer == annotation.layer:
                found = _difference(noted, annotation)
                yield BrokenPromise(layer.name, "node and model say the same of a layer", found)
    nodes = {layer.node for layer in layers}
    for node in graph.nodes:
        name = next((prop.value for prop in node.metadata_props if prop.key == LAYER), None)
        if name is not None and node.name not in nodes:
            yield BrokenPromise(name, "an annotated node is a layer", f"{node.op_type} '{node.name}' without a weight")
        elif name is not None and node_annotation(node) is None:
            yield BrokenPromise(name, "the note on a node describes a layer", f"that of '{node.name}' is unreadable")


def _difference(noted: Annotation, listed: Annotation) -> str:
    keys = ("weight_bits", "activation_bits", "sparsity", "granularity")
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
