"""How recipes and the command line name backends: a text, or a mapping of a simulated target and its settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vitslim.errors import Problem, closest

BACKENDS = (
    "onnxruntime:cpu", "openvino:cpu", "torch:cuda", "sim:systolic", "sim:a100", "sim:orin", "sim:h100", "sim:h200",
)  # fmt: skip
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


def wrong_backends(backends: Sequence[str | dict[str, Any]], judged: Iterable[str]) -> Iterator[Problem]:
    """Backends of a recipe that do not exist or come twice, and backends that a gate judges and no one asks."""
    named = [backend_name(backend) for backend in backends]
    for position, (backend, name) in enumerate(zip(backends, named, strict=True)):
        where = f"report.backends.{position}"
        if isinstance(backend, dict) and not isinstance(backend.get("sim"), str):
            yield Problem(where, "a mapping needs the key 'sim'", "for example {sim: systolic, array: [32, 32]}")
        elif isinstance(backend, str) and not is_known(backend):
            message = f"got '{backend}', expected a backend such as {BACKENDS[0]}"
            yield Problem(where, message, closest(backend, BACKENDS))
        if name in named[:position]:
            yield Problem(where, f"'{name}' is listed twice", "leave one of them")
    for backend in judged:
        if backend not in named:
            message = f"no result to judge: '{backend}' is not among report.backends"
            hint = closest(backend, named) if named else f"add it: report.backends=[{backend}]"
            yield Problem(f"gates.speedup_min.{backend}", message, hint)
