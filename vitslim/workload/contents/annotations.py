"""Read the annotations of layers: from the metadata of nodes, and from the model-level list.

The list exists because some runtimes drop the metadata of nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import NodeProto

from vitslim.workload.contents.file_contents import Annotation, Violation
from vitslim.workload.onnx_file import METADATA_PREFIX

LAYERS = METADATA_PREFIX + "layers"
TEXT_KEYS = ("sparsity", "granularity", "format")
INTEGER_KEYS = ("weight_bits", "activation_bits")


def model_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the model-level metadata, JSON values decoded."""
    return {prop.key: _decoded(prop.value) for prop in model.metadata_props}


def node_annotation(node: NodeProto) -> Annotation | None:
    """Return the annotation of a node; None when it has none, or one that is malformed."""
    fields = {
        prop.key.removeprefix(METADATA_PREFIX): _decoded(prop.value)
        for prop in node.metadata_props
        if prop.key.startswith(METADATA_PREFIX)
    }
    return _annotation(fields)


def listed_annotations(metadata: Mapping[str, Any]) -> tuple[tuple[Annotation, ...], tuple[Violation, ...]]:
    """Return the layers that the model-level metadata lists, and a violation for each malformed entry."""
    entries = metadata.get(LAYERS, [])
    if not isinstance(entries, list):
        return (), (Violation("", f"{LAYERS} is a list of layers", "it is not a list"),)
    read = [(entry, _annotation(entry)) for entry in entries]
    malformed = (
        Violation("", f"{LAYERS} describes layers", f"{json.dumps(entry)[:80]} is malformed")
        for entry, annotation in read
        if annotation is None
    )
    return tuple(annotation for _, annotation in read if annotation is not None), tuple(malformed)


def find_annotation(annotations: Iterable[Annotation], *names: str) -> Annotation | None:
    """Return the annotation of the layer that has one of these names; None when there is none."""
    known = {name.removesuffix(".weight") for name in names}
    return next((found for found in annotations if found.layer.removesuffix(".weight") in known), None)


def _annotation(fields: Any) -> Annotation | None:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("layer"), str):
        return None
    integers = {key: fields[key] for key in INTEGER_KEYS if key in fields}
    texts = {key: fields[key] for key in TEXT_KEYS if key in fields}
    has_integers = all(isinstance(value, int) and not isinstance(value, bool) for value in integers.values())
    if not has_integers or not all(isinstance(text, str) for text in texts.values()):
        return None
    return Annotation(fields["layer"], **integers, **texts)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
