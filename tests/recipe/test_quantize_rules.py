"""Rules between the keys of `quantize` and the profile of the export stage."""

from __future__ import annotations

from typing import Any

import pytest

from vitslim.errors import Problem
from vitslim.recipe import check_order, validate


def errors_of(keys: dict[str, Any], profile: str) -> list[Problem]:
    document = {
        "name": "test",
        "model": {"timm": "deit_tiny_patch16_224", "checkpoint": "w.safetensors"},
        "data": {"kind": "digits"},
        "stages": [{"quantize": {"method": "ptq", **keys}}, {"export": {"profile": profile}}],
    }
    return check_order(validate(document, partial=True))[0]


@pytest.mark.parametrize(
    ("keys", "profile", "key", "message"),
    [
        ({"group_size": 32, "bits": 4}, "portable", "group_size", "cannot store group-wise integer scales"),
        ({"group_size": 32}, "ort-cpu", "group_size", "at most 4 bits here, got `bits: 8`"),
        (
            {"group_size": 32, "bits": 4, "zero_points": True},
            "ort-cpu",
            "zero_points",
            "`zero_points` needs `activations: float`",
        ),
        ({"activations": "float", "symmetric": True}, "portable", "symmetric", "does not use"),
        ({"activations": "float", "placement": "auto"}, "ort-cpu", "placement", "does not use"),
        ({"placement": "auto"}, "portable", "placement", "cannot store"),
        ({"activations": "float", "calibrate": "mse"}, "portable", "calibrate", "does not use"),
        ({"activations": "float", "smooth": False}, "portable", "smooth", "does not use"),
        ({"activations": "float", "activation_scaling": "none"}, "portable", "activation_scaling", "does not use"),
        (
            {"smooth": False, "activation_scaling": "per-token"},
            "portable",
            "activation_scaling",
            "needs `smooth: true`",
        ),
        ({"zero_points": True, "activations": "float"}, "portable", "zero_points", "needs weight groups"),
        ({"activations": "float", "reduce_range": False}, "portable", "reduce_range", "does not use"),
        ({"bits": 7, "reduce_range": True}, "ort-cpu", "reduce_range", "no effect on weights of 7 bits"),
        ({"average_bits": 8}, "portable", "average_bits", "expected more than `bits: 8`"),
        (
            {"bits": 4, "average_bits": 3.5},
            "portable",
            "average_bits",
            "got `average_bits: 3.5`, expected more than `bits: 4`",
        ),
        ({"activations": "dynamic", "activation_bits": 4}, "ort-cpu", "activation_bits", "does not use"),
        ({"activations": "dynamic"}, "portable", "activations", "static scales only"),
        (
            {"method": "qat", "group_size": 32, "bits": 4},
            "ort-cpu",
            "group_size",
            "does not keep group scales",
        ),
        (
            {"method": "qat", "activations": "float", "activation_bits": 4},
            "portable",
            "activation_bits",
            "does not use",
        ),
    ],
)
def test_keys_of_quantization_that_contradict_each_other(
    keys: dict[str, Any], profile: str, key: str, message: str
) -> None:
    (problem,) = errors_of(keys, profile)
    assert problem.where == f"stages.0.quantize.{key}"
    assert message in problem.message
    assert problem.hint


@pytest.mark.parametrize(
    ("keys", "profile"),
    [
        ({"activations": "float", "bits": 4, "group_size": 32}, "portable"),
        ({"activations": "dynamic", "bits": 4, "group_size": 32}, "ort-cpu"),
        ({"bits": 3, "group_size": 16}, "ort-cpu"),
        ({"bits": 3, "group_size": 16, "reduce_range": False}, "ort-cpu"),
        ({"bits": 4, "first_last_bits": 8, "reduce_range": False}, "ort-cpu"),
        ({"bits": 4, "average_bits": 5, "reduce_range": False}, "ort-cpu"),
        ({"reduce_range": False}, "portable"),
        ({"activations": "dynamic"}, "ort-cpu"),
        ({}, "ort-cpu"),
        ({"bits": 4, "average_bits": 4.5, "first_last_bits": 8}, "portable"),
        ({"method": "qat", "activations": "float", "bits": 4, "group_size": 32}, "portable"),
    ],
)
def test_keys_of_quantization_that_fit(keys: dict[str, Any], profile: str) -> None:
    assert errors_of(keys, profile) == []
