"""How recipes and the command line name backends: a text, or a mapping of a simulated target and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BACKENDS = ("onnxruntime:cpu", "openvino:cpu", "sim:systolic", "sim:a100", "sim:orin", "sim:h100", "sim:h200")
SPEC_SUFFIXES = (".yaml", ".yml")
"""A simulated target that ends so is a settings file."""
SIM = "sim:"


def backend_name(value: str | Mapping[str, Any]) -> str:
    """The name of a backend in tables and gates: `sim:systolic(array=[32, 32])` for a mapping."""
    if isinstance(value, str):
        return value
    settings = ", ".join(f"{key}={setting}" for key, setting in value.items() if key != "sim")
    return f"{SIM}{value.get('sim', '')}({settings})" if settings else f"{SIM}{value.get('sim', '')}"


def is_known(name: str) -> bool:
    """Whether a name is that of a backend, or of a simulated target in a settings file."""
    return name in BACKENDS or (name.startswith(SIM) and name.endswith(SPEC_SUFFIXES))
