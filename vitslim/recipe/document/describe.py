"""Descriptions of every method and its keys, from the JSON schema of recipes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from vitslim.errors import UsageError, closest
from vitslim.recipe.config import ASSUMED
from vitslim.recipe.document.check import Schema, expected, inlined, join, shown
from vitslim.recipe.document.grammar import default_of, recipe_schema
from vitslim.recipe.plugins import plugin_hint
from vitslim.recipe.stage_config import StageConfig, method_of
from vitslim.recipe.stages import kinds


@dataclass(frozen=True)
class KeyInfo:
    """One key of a stage entry."""

    key: str
    """Dotted path below the stage, such as `train.epochs`."""
    description: str
    allowed: str
    is_required: bool
    default: Any
    """Value as in JSON; None for a required key."""
    is_assumed: bool
    """No source confirms the default."""
    is_mapping: bool
    """The keys of the mapping follow."""


@dataclass(frozen=True)
class MethodInfo:
    """One method of a stage kind."""

    kind: str
    method: str
    description: str
    is_default: bool
    """The kind uses this method when an entry names none."""
    example: str
    """The shortest valid entry, in YAML."""
    keys: tuple[KeyInfo, ...] = field(repr=False)
    """All keys but `method`; each mapping comes before the keys that it holds, and `name` comes last."""


def describe_methods() -> tuple[MethodInfo, ...]:
    """Describe every method, in the order of the stage kinds."""
    published = recipe_schema()
    definitions = {name: inlined(part, published["$defs"]) for name, part in published["$defs"].items()}
    return tuple(
        _describe(config, inlined(definitions[config.__name__], definitions))
        for classes in kinds().values()
        for config in classes
    )


def find_methods(name: str) -> tuple[MethodInfo, ...]:
    """Describe one method, or all methods of a stage kind.

    Raises UsageError, naming the closest word, when `name` is neither.
    """
    methods = describe_methods()
    found = tuple(m for m in methods if m.method == name) or tuple(m for m in methods if m.kind == name)
    if not found:
        names = dict.fromkeys(word for m in methods for word in (m.method, m.kind))
        raise UsageError(
            f"got {shown(name)}, expected a method or a stage kind", plugin_hint(name) or closest(name, names)
        )
    return found


def _describe(config: type[StageConfig], schema: Schema) -> MethodInfo:
    classes, method = kinds()[config.kind], method_of(config)
    keys = [info for info in _keys(schema, {}, "") if info.key != "method"]
    keys.sort(key=lambda info: info.key == "name")
    description = " ".join(str(schema.get("description", "")).split())
    example = _example(config.kind, method, len(classes) == 1, schema)
    return MethodInfo(config.kind, method, description, default_of(classes) is config, example, tuple(keys))


def _example(kind: str, method: str, is_alone: bool, schema: Schema) -> str:
    """Return the shortest entry: the bare kind where nothing else is required."""
    required = [key for key in schema.get("required", ()) if key != "method"]
    if is_alone and not required:
        return f"- {kind}"
    samples = (schema["properties"][key].get("enum", [key.upper()])[0] for key in required)
    values = [f"method: {method}", *(f"{key}: {value}" for key, value in zip(required, samples, strict=True))]
    return f"- {kind}: {{{', '.join(values)}}}"


def _keys(schema: Schema, defaults: Any, where: str) -> Iterator[KeyInfo]:
    """Yield the keys of a mapping and of all that it holds; `defaults` are the values that its own default sets."""
    given = defaults if isinstance(defaults, dict) else {}
    for key, part in schema.get("properties", {}).items():
        is_required, inner = key in schema.get("required", ()), _mapping_in(part)
        default = None if is_required else given.get(key, part.get("default"))
        yield KeyInfo(
            key=join(where, key),
            description=" ".join(str(part.get("description", "")).split()),
            allowed=expected(part),
            is_required=is_required,
            default=default,
            is_assumed=bool(part.get(ASSUMED, False)),
            is_mapping=inner is not None,
        )
        if inner is not None:
            yield from _keys(inner, default, join(where, key))


def _mapping_in(schema: Schema) -> Schema | None:
    """Return the mapping with fixed keys that a key takes, alone or among other values."""
    branches = schema.get("anyOf", [schema])
    return next((branch for branch in branches if "properties" in branch), None)
