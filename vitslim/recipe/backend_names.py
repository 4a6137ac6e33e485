"""Names of backends in recipes and on the command line: a string, or a mapping of a simulated target and settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vitslim.errors import Problem, closest

RUN_ONNX = (
    "onnxruntime:cpu", "onnxruntime:cuda", "onnxruntime:tensorrt", "onnxruntime:openvino", "onnxruntime:xnnpack",
    "onnxruntime:dml", "onnxruntime:coreml", "openvino:cpu",
)  # fmt: skip
"""Measured backends that run the ONNX file itself."""
MEASURED = (*RUN_ONNX, "torch:cuda")
"""Measured backends; `vitslim.backends.registry` has an entry for each."""
SIMULATED_TARGETS = {
    "systolic": "systolic", "a100": "gpu", "orin": "gpu", "h100": "gpu", "h200": "gpu",
    "spatten": "spatten", "spatten-1/8": "spatten", "fact": "fact",
}  # fmt: skip
"""Simulated target to its family, a folder of `vitslim/backends/simulated`."""
APPROXIMATING = ("spatten", "fact")
"""Families of targets that change results."""
SIM = "sim:"
"""Prefix of simulated backends."""
SPEC_SUFFIXES = (".yaml", ".yml")
"""A simulated target with one of these suffixes is a settings file."""


def known_backends() -> tuple[str, ...]:
    """Return every backend that ships with vitslim: `onnxruntime:cpu`, `sim:a100`, and so on."""
    return (*MEASURED, *(f"{SIM}{target}" for target in SIMULATED_TARGETS))


def backend_name(value: str | Mapping[str, Any]) -> str:
    """Return the name of a backend in tables and gates: `sim:systolic(array=[32, 32])` for a mapping."""
    if isinstance(value, str):
        return value
    settings = ", ".join(_settings({key: setting for key, setting in value.items() if key != "sim"}))
    return f"{SIM}{value.get('sim', '')}({settings})" if settings else f"{SIM}{value.get('sim', '')}"


def _settings(values: Mapping[str, Any], start: str = "") -> Iterator[str]:
    """Yield each setting as in a recipe: `token.pruning_ratio=0.1`."""
    for key, setting in values.items():
        if isinstance(setting, Mapping):
            yield from _settings(setting, f"{start}{key}.")
        else:
            plain = {None: "null", True: "true", False: "false"}
            is_plain = setting is None or isinstance(setting, bool)
            yield f"{start}{key}={plain[setting] if is_plain else setting}"


def may_approximate(value: str | Mapping[str, Any]) -> bool:
    """Return whether a backend may change results: an accelerator with approximations, or a settings file."""
    target = value.removeprefix(SIM) if isinstance(value, str) else str(value.get("sim", ""))
    return SIMULATED_TARGETS.get(target) in APPROXIMATING or target.endswith(SPEC_SUFFIXES)


def is_known(name: str) -> bool:
    """Return whether a name is a backend that ships with vitslim, or a simulated target in a settings file."""
    return name in known_backends() or (name.startswith(SIM) and name.endswith(SPEC_SUFFIXES))


def wrong_backends(backends: Sequence[str | dict[str, Any]], gated: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """Yield a problem for each unknown or repeated backend, and for each gate without a backend of that name.

    gated: path of each gate in the recipe, and the backend that it names.
    """
    named = [backend_name(backend) for backend in backends]
    for position, (backend, name) in enumerate(zip(backends, named, strict=True)):
        where = f"report.backends.{position}"
        if isinstance(backend, dict) and not isinstance(backend.get("sim"), str):
            yield Problem(where, "a mapping needs the key 'sim'", "for example {sim: systolic, array: [32, 32]}")
        elif isinstance(backend, str) and not is_known(backend):
            message = f"got '{backend}', expected a backend such as {MEASURED[0]}"
            yield Problem(where, message, closest(backend, known_backends()))
        if name in named[:position]:
            yield Problem(where, f"'{name}' is listed twice", "remove one of them")
    for where, backend in gated:
        if backend not in named:
            message = f"the gate needs a result of '{backend}', which is not among report.backends"
            is_near = difflib.get_close_matches(backend, named, n=1)
            hint = closest(backend, named) if is_near else "add it to report.backends, or remove the gate"
            yield Problem(where, message, hint)
