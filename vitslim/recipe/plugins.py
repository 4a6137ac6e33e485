"""Methods of other packages, which entry points of the group `vitslim.methods` name.

The name of an entry point is the method as recipes write it; its value is the config class, a subclass of `StageConfig`
whose `make_stage` returns the stage. No code of a plugin is imported unless the user allows plugins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import get_args

from vitslim.errors import UsageError
from vitslim.recipe.stage_config import Phase, StageConfig, method_of
from vitslim.recipe.stages import METHODS, further_methods

GROUP = "vitslim.methods"
_BROKEN = (ImportError, AttributeError, NameError, SyntaxError, TypeError, ValueError, RuntimeError, OSError)
"""Errors of a module that cannot be imported."""


@dataclass(frozen=True)
class Plugin:
    """A method of another package."""

    distribution: str
    version: str
    config: type[StageConfig]

    @property
    def name(self) -> str:
        """Name in lists of versions, such as `plugin vitslim-thirds`."""
        return f"plugin {self.distribution}"

    def source_files(self) -> tuple[Path, ...]:
        """Return the Python files of the package that defines the config."""
        top = sys.modules[self.config.__module__.partition(".")[0]]
        folders = [Path(folder) for folder in getattr(top, "__path__", ())]
        return tuple(sorted(file for folder in folders for file in folder.rglob("*.py"))) or (Path(str(top.__file__)),)


@contextmanager
def allow_plugins() -> Iterator[None]:
    """Import the installed plugins and let recipes use their methods, until the context ends.

    Raises UsageError for a plugin that cannot be imported, is not a config of a method, or repeats a method.
    """
    found = {point: _load(point) for point in _installed()}
    owners = {name: "vitslim" for config in METHODS for name in _names(config)}
    for point, config in found.items():
        for name in _names(config):
            if name in owners:
                raise UsageError(f"{_owner(point)} repeats '{name}' of {owners[name]}", "uninstall one of the two")
            owners[name] = _owner(point)
    with further_methods(found.values()):
        yield


def plugin_hint(method: str) -> str:
    """Return a hint if an installed plugin provides a method or stage kind; empty if none does. Imports no plugin."""
    owner = next((_owner(point) for point in _installed() if point.name == method), None)
    return f"{owner} provides it: add --allow-plugins if you trust that package" if owner else ""


def plugins_of(stages: tuple[StageConfig, ...]) -> tuple[Plugin, ...]:
    """Return the plugins that these stages use, one for each method."""
    found: dict[type[StageConfig], Plugin] = {}
    for config in stages:
        if type(config) not in METHODS:
            for point in _installed():
                if point.name == config.method and _load(point) is type(config):
                    found[type(config)] = Plugin(*_distribution(point), type(config))
    return tuple(found.values())


def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _load(point: EntryPoint) -> type[StageConfig]:
    hint = "install another version of the package, or uninstall it"
    try:
        config = point.load()
    except _BROKEN as error:
        raise UsageError(f"{_owner(point)} cannot be imported: {type(error).__name__}: {error}", hint) from error
    if not isinstance(config, type) or not issubclass(config, StageConfig) or not _is_complete(config):
        raise UsageError(f"{_owner(point)}: '{point.value}' is not the config of a method", hint)
    if method_of(config) != point.name:
        message = f"{_owner(point)}: the entry point '{point.name}' names the config of '{method_of(config)}'"
        raise UsageError(message, hint)
    return config


def _is_complete(config: type[StageConfig]) -> bool:
    """Return whether a config has a kind, a phase, a method of one name, and makes a stage."""
    has_kind = isinstance(getattr(config, "kind", None), str) and isinstance(getattr(config, "phase", None), Phase)
    names = get_args(config.model_fields["method"].annotation)
    return has_kind and len(names) == 1 and config.make_stage is not StageConfig.make_stage


def _names(config: type[StageConfig]) -> tuple[str, str]:
    """Return the names that no other method may have: `KIND: METHOD`, and the class in the JSON schema."""
    return f"{config.kind}: {method_of(config)}", f"class {config.__name__}"


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Return name and version of the package that an entry point belongs to."""
    return (point.dist.name, point.dist.version) if point.dist is not None else (point.module, "unknown")


def _owner(point: EntryPoint) -> str:
    return " ".join(("plugin", *_distribution(point)))
