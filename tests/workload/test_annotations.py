"""Annotations of layers that their stored weights keep or violate, and scales that are no scales."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_layers import PER_CHANNEL, constants, contents_of, int8_weight, only_layer

WriteGraph = Callable[..., Path]


def annotate(path: Path, **fields: Any) -> Path:
    """Add a layer to the model-level list of annotations, as the export stage does."""
    model = onnx.load(path)
    entry = {"layer": "w", "weight_bits": 8, "activation_bits": 8, "sparsity": "", "granularity": "channel"} | fields
    model.metadata_props.add(key="vitslim.layers", value=json.dumps([entry]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("kept", "fields", "claim", "found"),
    [
        (3, {"sparsity": "2:4"}, "2:4 weights", "12 of 12 runs"),
        (2, {"sparsity": "2:4-pairs"}, "2:4-pairs weights", "6 of 6 runs"),
        (3, {"sparsity": "unstructured:0.5"}, "unstructured:0.5 weights", "25.0% of its weights are zero"),
        (3, {"sparsity": "7:3"}, "'7:3' weights", "an unknown pattern"),
        (4, {"weight_bits": 7}, "7-bit weights, integers from -63 to 63", "to 100"),
        (4, {"activation_bits": 4}, "4-bit input", "8 bits"),
        (4, {"layer": "blocks.7.w"}, "an annotated layer is in the graph", "no layer of this name"),
    ],
)
def test_a_violated_annotation_is_reported(
    write_graph: WriteGraph, kept: int, fields: dict[str, Any], claim: str, found: str
) -> None:
    path = annotate(write_graph(PER_CHANNEL, **constants(w=int8_weight(kept))), **fields)
    (violation,) = contents_of(path).violations
    assert violation.layer == fields.get("layer", "w")
    assert violation.claim == claim
    assert found in violation.found


def test_true_annotations_are_accepted(write_graph: WriteGraph) -> None:
    for kept, fields in ((2, {"sparsity": "2:4"}), (2, {"sparsity": "unstructured:0.5"}), (4, {"weight_bits": 8})):
        path = annotate(write_graph(PER_CHANNEL, **constants(w=int8_weight(kept))), **fields)
        assert contents_of(path).violations == ()
    path = annotate(write_graph(PER_CHANNEL, **constants(w=int8_weight(largest=31))), weight_bits=6)
    assert contents_of(path).violations == ()
    layer = only_layer(path)
    assert (layer.weight_bits, layer.device_bytes, layer.stored_bytes) == (6, 36, 48)


def test_a_float_weight_annotated_as_int8_is_a_violation(write_graph: WriteGraph) -> None:
    path = annotate(write_graph("y = MatMul(x, w)", w=np.ones((8, 6), np.float32)))
    assert {(b.claim, b.found) for b in contents_of(path).violations} == {
        ("8-bit weights", "stored as FLOAT"), ("8-bit input", "32 bits"),
    }  # fmt: skip


def test_a_shifted_zero_point_exceeds_the_annotated_bits(write_graph: WriteGraph) -> None:
    text = PER_CHANNEL.replace("(w, sw)", "(w, sw, zw)")
    path = write_graph(text, **constants(w=int8_weight(largest=127), zw=np.full(6, -3, np.int8)))
    (violation,) = contents_of(annotate(path)).violations
    assert violation.found.endswith("to 130")


@pytest.mark.parametrize("wrong", [0.0, -0.1, np.nan, np.inf])
def test_scales_must_be_positive_and_finite(write_graph: WriteGraph, wrong: float) -> None:
    scales = np.full(6, 0.1, np.float32)
    scales[2] = wrong
    (violation,) = contents_of(write_graph(PER_CHANNEL, **constants(w=int8_weight(), sw=scales))).violations
    assert (violation.layer, violation.claim) == ("w", "scales are positive and finite")
    assert "1 of 6 in 'sw'" in violation.found
    found = contents_of(write_graph(PER_CHANNEL, **constants(w=int8_weight(), s=np.float32(wrong)))).violations
    assert {b.layer for b in found} == {"w"}


def test_malformed_annotations_are_violations(write_graph: WriteGraph) -> None:
    path = write_graph(PER_CHANNEL, **constants(w=int8_weight()))
    for text in ('{"a": 1}', '[1, {"layer": 3}]', "[" * 100_000, '[{"layer": "w", "weight_bits": "many"}]'):
        model = onnx.load(path)
        model.metadata_props.add(key="vitslim.layers", value=text)
        onnx.save(model, path.with_name("noted.onnx"))
        violations = contents_of(path.with_name("noted.onnx")).violations
        assert violations
        assert all(b.claim.startswith("vitslim.layers") for b in violations)


def test_annotations_of_nodes_are_compared_with_the_model(write_graph: WriteGraph) -> None:
    path = annotate(write_graph(PER_CHANNEL, **constants(w=int8_weight())))
    model = onnx.load(path)
    matmul, first = model.graph.node[-1], model.graph.node[0]
    for key, value in {"layer": "w", "weight_bits": "8", "activation_bits": "4"}.items():
        matmul.metadata_props.add(key=f"vitslim.{key}", value=value)
    first.metadata_props.add(key="vitslim.layer", value="ghost")
    onnx.save(model, path)
    assert {(b.layer, b.claim) for b in contents_of(path).violations} == {
        ("w", "annotations of node and model are equal"),
        ("ghost", "an annotated node is a layer"),
        ("w", "4-bit input"),
    }
