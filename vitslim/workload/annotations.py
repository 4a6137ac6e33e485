"""What a file says about its layers: on their nodes and, for runtimes that drop notes on nodes, on the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import NodeProto

from vitslim.workload.facts import Annotation, BrokenPromise
from vitslim.workload.file import METADATA_PREFIX

LAYERS = METADATA_PREFIX + "layers"
TEXTS = ("sparsity", "granularity")
NUMBERS = ("weight_bits", "activation_bits")


def read_notes(model: onnx.ModelProto) -> dict[str, Any]:
    """Model-level metadata, JSON values decoded."""
    return {prop.key: _decoded(prop.value) for prop in model.metadata_props}


def node_annotation(node: NodeProto) -> Annotation | None:
    """What a node says about its layer; None when it says nothing or nothing that can be read."""
    fields = {
        prop.key.removeprefix(METADATA_PREFIX): _decoded(prop.value)
        for prop in node.metadata_props
        if prop.key.startswith(METADATA_PREFIX)
    }
    return _annotation(fields)


def listed_annotations(notes: Mapping[str, Any]) -> tuple[tuple[Annotation, ...], tuple[BrokenPromise, ...]]:
    """The layers that the model-level metadata lists, and what of the list cannot be read."""
    entries = notes.get(LAYERS, [])
    if not isinstance(entries, list):
        return (), (BrokenPromise("", f"{LAYERS} lists the layers", "it is not a list"),)
    read = [(entry, _annotation(entry)) for entry in entries]
    unreadable = (
        BrokenPromise("", f"{LAYERS} describes layers", f"{json.dumps(entry)[:80]} is no description")
        for entry, annotation in read
        if annotation is None
    )
    return tuple(annotation for _, annotation in read if annotation is not None), tuple(unreadable)


def find_annotation(annotations: Iterable[Annotation], *names: str) -> Annotation | None:
    """The annotation of the layer that goes by one of these names."""
    known = {name.removesuffix(".weight") for name in names}
    return next((found for found in annotations if found.layer.removesuffix(".weight") in known), None)


def _annotation(fields: Any) -> Annotation | None:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("layer"), str):
        return None
    numbers = {key: fields[key] for key in NUMBERS if key in fields}
    texts = {key: fields[key] for key in TEXTS if key in fields}
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers.values())
    if not whole or not all(isinstance(text, str) for text in texts.values()):
        return None
    return Annotation(fields["layer"], **numbers, **texts)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
