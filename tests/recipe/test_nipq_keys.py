"""Rules between the keys of `quantize: {method: nipq}`, which need only the text of the recipe."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.errors import Problem, RecipeError
from vitslim.recipe import check_order, validate

AVERAGE = {"target": {"average_bits": 4}}


def errors_of(keys: dict[str, Any]) -> list[Problem]:
    document = {
        "name": "test",
        "model": {"timm": "deit_tiny_patch16_224", "checkpoint": "w.safetensors"},
        "data": {"kind": "digits"},
        "stages": [{"quantize": {"method": "nipq", **keys}}, {"export": {"profile": "ort-cpu"}}],
    }
    return check_order(validate(document, partial=True))[0]


@pytest.mark.parametrize(
    "keys",
    [
        AVERAGE,
        {"bits": 4, "activation_bits": 4},
        {"bits": 4, "target": {"bops": 20.0}},
        {"bits": [4, 8], "activation_bits": 8, "target": {"size_mb": 4.0}},
        {"bits": [4, 8], "activation_bits": [4, 8], "target": {"latency": 0.6, "backend": "sim:a100"}},
        {"bit_range": [2, 14], "bits": [4, 8], "activation_bits": [4, 8], "target": {"average_bits": 6}},
    ],
)
def test_valid_keys(keys: dict[str, Any]) -> None:
    assert errors_of(keys) == []


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({}, "target", "`bits` is learned, which needs a target"),
        ({"bits": 4}, "target", "`activation_bits` is learned"),
        ({"target": {}}, "target", "got none, expected exactly one of average_bits, bops, size_mb and latency"),
        ({"target": {"average_bits": 4, "bops": 9.0}}, "target", "got average_bits and bops"),
        ({"target": {"latency": 0.5}}, "target.backend", "`latency` needs a simulated target"),
        ({"target": {"latency": 0.5, "backend": "onnxruntime:cpu"}}, "target.backend", "expected a simulated target"),
        ({"target": {"average_bits": 4, "backend": "sim:a100"}}, "target.backend", "a backend without `latency`"),
        ({"bits": 4, "activation_bits": 4, **AVERAGE}, "target", "no bits are learned"),
        ({"bits": 8, "target": {"size_mb": 3.0}}, "target.size_mb", "weights have fixed `bits: 8`"),
        ({"target": {"size_mb": 3.0}}, "bits", "counts containers of 4 and 8 bits"),
        ({"bits": [3, 8], "target": {"size_mb": 3.0}}, "bits", "got [3, 8]"),
        (
            {"bits": [4, 8], "target": {"latency": 0.6, "backend": "sim:a100"}},
            "activation_bits",
            "`latency` counts containers",
        ),
        ({"bits": [4, 8], "target": {"average_bits": 3}}, "target.average_bits", "below the fewest bits"),
        ({"bit_range": [2, 14], **AVERAGE}, "bits", "no export profile stores more than 8 bits"),
        ({"bit_range": [8, 2], **AVERAGE}, "bit_range", "expected the smallest and the largest number of bits"),
        ({"bit_range": [2, 4, 8], **AVERAGE}, "bit_range", "expected the smallest and the largest"),
        ({"bits": [4], **AVERAGE}, "bits", "got a list of one width"),
        ({"quantized_epochs": 3, **AVERAGE}, "quantized_epochs", "leaves no epoch with noise"),
    ],
)
def test_contradictions_are_refused_with_the_key(keys: dict[str, Any], key: str, message: str) -> None:
    problems = errors_of(keys)
    assert any(p.where == f"stages.0.quantize.{key}" and message in p.message and p.hint for p in problems)


@pytest.mark.parametrize("bits", [1, 9, "four", [4, 9], []])
def test_bits_that_no_type_stores_are_refused(bits: Any) -> None:
    with pytest.raises(RecipeError) as raised:
        errors_of({"bits": bits, **AVERAGE})
    assert raised.value.problems[0].where.startswith("stages.0.quantize.bits")
