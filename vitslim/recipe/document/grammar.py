"""The JSON schema of recipe files, and the syntax of stage entries.

A stage entry is a mapping with one key, its kind: `- prune: {method: two-four}`. `method` may be omitted where a kind
has a default method, and a kind without required keys may stand alone: `- export`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic.json_schema import models_json_schema

from vitslim.errors import Problem, closest
from vitslim.recipe.document.check import Schema, check, inlined, join, mismatch, missing, shown
from vitslim.recipe.plugins import plugin_hint
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import StageConfig, method_of
from vitslim.recipe.stages import kinds, methods

EXTENDS = "extends"
LOCKED = "locked"
FILE_KEYS = (EXTENDS, LOCKED)
"""Keys of a recipe file that are not part of `Recipe`."""


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of recipe files, for editors that complete and check YAML."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"] = {**schema["$defs"], **_definitions()}
    schema["properties"] = {
        EXTENDS: {
            "type": "string",
            "description": "packaged recipe, file relative to this one, zip of `vitslim recipes pack`, or "
            "git+URL@COMMIT#PATH; mappings are merged, lists are replaced",
        },
        **schema["properties"],
        LOCKED: {
            "type": "object",
            "description": "versions and digests that a run recorded; ignored when the file is loaded",
        },
    }
    schema["properties"]["stages"]["items"] = {"anyOf": list(_entries(definitions))}
    schema |= {"if": {"not": {"required": [EXTENDS]}}, "then": {"required": schema.pop("required")}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "vitslim recipe",
    }


def check_document(document: Mapping[str, Any]) -> list[Problem]:
    """Return every problem of the values of a recipe, after `extends` and overrides were applied."""
    published = recipe_schema()
    definitions = {name: inlined(part, published["$defs"]) for name, part in published["$defs"].items()}
    schema = inlined({key: part for key, part in published.items() if key != "$defs"}, definitions)
    schema["properties"]["stages"] = {"type": "array", "x-expected": "a list of stages"}
    schema["required"] = schema["then"]["required"]
    problems = check(dict(document), schema)
    stages = document.get("stages")
    for position, entry in enumerate(stages if isinstance(stages, list | tuple) else ()):
        problems += _check_entry(entry, f"stages.{position}", definitions)
    return problems


def read_stage(entry: str | Mapping[str, Any]) -> StageConfig:
    """Return the config of a stage entry that `check_document` accepted."""
    kind, values = split_entry(entry)
    classes = kinds()[kind]
    method = (values or {}).get("method")
    config = next((c for c in classes if method_of(c) == method), default_of(classes) or classes[0])
    return config.model_validate({"method": method_of(config), **(values or {})}, strict=False)


def write_stage(config: StageConfig) -> dict[str, Any]:
    """Return the stage entry of a config with all defaults: the inverse of `read_stage`."""
    values = config.model_dump(mode="json")
    if values.get("name") is None:
        values.pop("name", None)
    return {config.kind: {"method": values.pop("method"), **values}}


def split_entry(entry: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Return the kind and the values of a stage entry."""
    return (entry, None) if isinstance(entry, str) else next(iter(entry.items()))


def default_of(classes: tuple[type[StageConfig], ...]) -> type[StageConfig] | None:
    """Return the default method of a kind: its only one, or the one whose `method` key has a default."""
    if len(classes) == 1:
        return classes[0]
    return next((config for config in classes if not config.model_fields["method"].is_required()), None)


def _definitions() -> dict[str, Any]:
    """Return the schemas of all stage configs and of their parts; `method` is optional for kinds with one method."""
    _, top = models_json_schema([(config, "validation") for config in methods()])
    definitions: dict[str, Any] = top["$defs"]
    for classes in kinds().values():
        if len(classes) == 1:
            required = definitions[classes[0].__name__].get("required", [])
            definitions[classes[0].__name__]["required"] = [key for key in required if key != "method"]
    return definitions


def _entries(definitions: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    bare = [kind for kind, classes in kinds().items() if _is_bare(classes, definitions)]
    yield {"type": "string", "enum": bare}
    for kind, classes in kinds().items():
        values: list[dict[str, Any]] = [{"$ref": f"#/$defs/{config.__name__}"} for config in classes]
        values += [{"type": "null"}] if kind in bare else []
        value = {"anyOf": values} if len(values) > 1 else values[0]
        yield {"type": "object", "properties": {kind: value}, "required": [kind], "additionalProperties": False}


def _is_bare(classes: tuple[type[StageConfig], ...], definitions: Mapping[str, Any]) -> bool:
    default = default_of(classes)
    return default is not None and not definitions[default.__name__].get("required")


def _check_entry(entry: object, where: str, definitions: Mapping[str, Schema]) -> list[Problem]:
    if isinstance(entry, str):
        if entry not in kinds():
            return [_unknown_kind(where, entry)]
        return _check_values({}, entry, join(where, entry), definitions)
    if not isinstance(entry, dict):
        return [Problem(where, f"got {shown(entry)}, expected a stage", "such as `- prune: {method: two-four}`")]
    if len(entry) != 1:
        found = ", ".join(shown(key) for key in entry) or "none"
        hint = "indent the values of a stage below its kind, or begin a new entry with '-'"
        return [Problem(where, f"expected one stage kind, got {len(entry)} keys ({found})", hint)]
    kind, values = next(iter(entry.items()))
    if not isinstance(kind, str) or kind not in kinds():
        return [_unknown_kind(where, kind)]
    return _check_values({} if values is None else values, kind, join(where, kind), definitions)


def _check_values(values: object, kind: str, where: str, definitions: Mapping[str, Schema]) -> list[Problem]:
    classes = {method_of(config): config for config in kinds()[kind]}
    only = next(iter(classes))
    if not isinstance(values, dict):
        hint = f"write `- {kind}: {{method: {values if values in list(classes) else only}}}`"
        return [Problem(where, f"got {shown(values)}, expected a mapping", hint)]
    allowed = {"type": "string", "enum": list(classes)} if len(classes) > 1 else {"type": "string", "const": only}
    default = default_of(kinds()[kind])
    method = values.get("method", method_of(default) if default else None)
    if "method" not in values and method is None:
        return [missing(join(where, "method"), allowed)]
    if not isinstance(method, str) or method not in classes:
        problem = mismatch(join(where, "method"), method, allowed)
        return [replace(problem, hint=plugin_hint(str(method)) or problem.hint)]
    return check(values, definitions[classes[method].__name__], where)


def _unknown_kind(where: str, kind: object) -> Problem:
    message = f"got {shown(kind)}, expected a stage kind"
    if not isinstance(kind, str):
        return Problem(where, message, f"allowed: {', '.join(kinds())}")
    for owner, classes in kinds().items():
        if kind in [method_of(config) for config in classes]:
            return Problem(where, message, f"'{kind}' is a method: write `- {owner}: {{method: {kind}}}`")
    return Problem(where, message, plugin_hint(str(kind)) or closest(kind[:40], kinds()))
