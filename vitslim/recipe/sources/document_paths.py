"""The files and folders that a recipe document names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vitslim.recipe.document.check import join
from vitslim.recipe.document.grammar import split_entry
from vitslim.recipe.schema import CLASS_ORDERS, HUB
from vitslim.recipe.stage_config import STAGE_FILES
from vitslim.recipe.stages.training import PACKAGE

_SETTINGS_FILE = re.compile(r"(sim:)([^()]+\.ya?ml)(\(.*\))?", re.DOTALL)
"""Name of a simulated backend with a settings file, as in `report.backends` and in gates."""


class Content(Enum):
    """What a named file or folder holds."""

    WEIGHTS = "weights"
    IMAGES = "images"
    VALUES = "values"
    """A class list, a latency table, or settings of a simulator."""


@dataclass(frozen=True)
class NamedPath:
    """A path in a recipe document."""

    where: str
    """Dotted path of the key."""
    path: str
    content: Content


Change = Callable[[NamedPath], str]


def change_paths(document: dict[str, Any], change: Change) -> None:
    """Replace each path of a document by the result of `change`. Values of a wrong type are left to validation."""
    for holder, key, where, content in _holders(document):
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, str) and value and not value.startswith((PACKAGE, HUB)):
            holder[key] = change(NamedPath(where, value, content))
    _change_backends(document, change)


def _holders(document: dict[str, Any]) -> Iterator[tuple[Any, str, str, Content]]:
    """Yield each mapping that may name a file, the key of the file, its dotted path and its content."""
    yield document.get("model"), "checkpoint", "model.checkpoint", Content.WEIGHTS
    data = document.get("data")
    if isinstance(data, dict):
        yield data, "root", "data.root", Content.IMAGES
        if data.get("classes") not in CLASS_ORDERS:
            yield data, "classes", "data.classes", Content.VALUES
        also = data.get("also_evaluate")
        for name in list(also) if isinstance(also, dict) else ():
            shown = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
            yield also, name, f"data.also_evaluate.{shown}", Content.IMAGES
    stages = document.get("stages")
    for position, entry in enumerate(stages if isinstance(stages, list) else ()):
        if isinstance(entry, dict) and len(entry) == 1:
            yield from _stage_holders(entry, join("stages", position))


def _stage_holders(entry: dict[str, Any], where: str) -> Iterator[tuple[Any, str, str, Content]]:
    kind, values = split_entry(entry)
    for key, name in STAGE_FILES:
        found = values.get(key) if isinstance(values, dict) else None
        content = Content.WEIGHTS if name == "checkpoint" else Content.VALUES
        for holder in found if isinstance(found, list) else [found]:
            yield holder, name, f"{where}.{kind}.{key}.{name}", content


def _change_backends(document: dict[str, Any], change: Change) -> None:
    """Replace settings files in `report.backends` and in the names of gated backends."""
    report, gates = document.get("report"), document.get("gates")
    found = report.get("backends") if isinstance(report, dict) else None
    backends = found if isinstance(found, list) else []
    for position, backend in enumerate(backends):
        where = f"report.backends.{position}"
        if isinstance(backend, str):
            backends[position] = _changed(backend, where, change)
        elif isinstance(backend, dict) and isinstance(backend.get("sim"), str):
            backend["sim"] = _changed(f"sim:{backend['sim']}", where, change).removeprefix("sim:")
    speedups = gates.get("speedup_min") if isinstance(gates, dict) else None
    if isinstance(gates, dict) and isinstance(speedups, dict):
        gates["speedup_min"] = {
            _changed(name, "gates.speedup_min", change) if isinstance(name, str) else name: value
            for name, value in speedups.items()
        }


def _changed(backend: str, where: str, change: Change) -> str:
    found = _SETTINGS_FILE.fullmatch(backend)
    if found is None:
        return backend
    prefix, path, settings = found.groups()
    return f"{prefix}{change(NamedPath(where, path, Content.VALUES))}{settings or ''}"
