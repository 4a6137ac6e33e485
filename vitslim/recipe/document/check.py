"""Validation of a value against its JSON schema, with messages for people.

The schema comes from the typed configs, so the constraint, the message and the published schema have one source. Only
the part of JSON schema that pydantic writes for those configs is supported; `inlined` resolves `$ref` beforehand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import NoneType
from typing import Any

from vitslim.errors import Problem, closest
from vitslim.recipe.config import EXPECTED
from vitslim.recipe.document.yaml12 import plain_value

Schema = Mapping[str, Any]

_TYPES: Mapping[str, Any] = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": NoneType,
    "array": list | tuple,
    "object": dict,
}
_WORDS = {"integer": "an integer", "number": "a number", "boolean": "true or false", "null": "null"}
LARGEST_INTEGER = 2**63 - 1
LONGEST_TEXT = 4096
_SHOWN = 40
_NEARLY_SAME = 0.75


def check(value: object, schema: Schema, where: str = "") -> list[Problem]:
    """Return every problem of a value and of the values inside it; an empty list for a valid value."""
    if branches := schema.get("anyOf"):
        return _check_any(value, schema, branches, where)
    if not _fits(value, schema):
        return [mismatch(where, value, schema)]
    if isinstance(value, dict):
        return list(_check_mapping(value, schema, where))
    if isinstance(value, list | tuple) and (items := schema.get("items")):
        return [p for position, item in enumerate(value) for p in check(item, items, join(where, position))]
    return []


def mismatch(where: str, value: object, schema: Schema) -> Problem:
    """Return the problem of a value that does not match the schema."""
    return Problem(where, f"got {shown(value)}, expected {expected(schema)}", _hint(value, schema))


def missing(where: str, schema: Schema) -> Problem:
    """Return the problem of a missing required key."""
    options = _options(schema)
    return Problem(where, f"required key missing, expected {expected(schema)}", _allowed(options) if options else "")


def unknown(where: str, key: str, allowed: Mapping[str, object]) -> Problem:
    """Return the problem of an unknown key. The hint lists the allowed keys unless one of them is nearly the same."""
    word = key[:_SHOWN]
    if get_close_matches(word, allowed, n=1, cutoff=_NEARLY_SAME):
        hint = closest(word, allowed)
    else:
        hint = f"allowed: {', '.join(sorted(allowed))}"
    return Problem(join(where, word), "unknown key", hint)


def join(where: str, key: str | int) -> str:
    """Return a dotted path extended by one key."""
    return f"{where}.{key}" if where else str(key)


def inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with every `$ref` replaced by its definition."""
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: inlined(value, definitions) for key, value in schema.items() if key not in ("$ref", "$defs")}
    if "$ref" not in schema:
        return rest
    return inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions) | rest


def shown(value: object) -> str:
    """Return a value as a short text for messages, in YAML notation."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case int():
            text = str(value) if abs(value) <= LARGEST_INTEGER else "a number with too many digits"
        case float():
            text = f"{value:g}"
        case str():
            text = f"'{_printable(value)}'"
        case dict():
            text = "a mapping"
        case list() | tuple():
            text = "a list" if value else "an empty list"
        case _:
            text = f"a value of type {type(value).__name__}"
    return text


def _printable(value: str) -> str:
    text = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
    return text if _is_text(text) else text.encode("unicode_escape").decode("ascii")


def expected(schema: Schema) -> str:
    """Return the values that a schema allows, in words: `a number from 0 to below 1`."""
    if words := schema.get(EXPECTED):
        return str(words)
    if options := _options(schema):
        return ("one of " if len(options) > 1 else "") + ", ".join(shown(option) for option in options)
    if branches := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(expected(branch) for branch in branches if branch.get("type") != "null"))
    values, items = schema.get("additionalProperties"), schema.get("items")
    match schema.get("type"):
        case "array":
            length = "a list with at least one entry" if schema.get("minItems") else "a list"
            return f"{length}, each {expected(items)}" if items else length
        case "object":
            return f"a mapping of names, each to {expected(values)}" if isinstance(values, dict) else "a mapping"
        case kind:
            multiple = f", a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
            return _WORDS.get(str(kind), "text") + _range(schema) + multiple


def _range(schema: Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    start = f" from {low}" if low is not None else f" above {above}" if above is not None else ""
    if high is None and below is None:
        return f" of at least {low}" if low is not None else start
    end = f"to {high}" if high is not None else f"to below {below}"
    return f"{start} {'and up ' if above is not None else ''}{end}"


def _check_any(value: object, schema: Schema, branches: list[Schema], where: str) -> list[Problem]:
    found = [check(value, branch, where) for branch in branches]
    if not all(found):
        return []
    kind = "object" if isinstance(value, dict) else "array" if isinstance(value, list | tuple) else ""
    same = [problems for problems, branch in zip(found, branches, strict=True) if branch.get("type") == kind]
    return same[0] if len(same) == 1 else [mismatch(where, value, schema)]


def _check_mapping(value: Mapping[object, object], schema: Schema, where: str) -> Iterator[Problem]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    named = schema.get("patternProperties", {})
    for key, item in value.items():
        if not isinstance(key, str) or not _is_text(key):
            yield Problem(where, f"got the key {shown(key)}, expected text", "put quotes around the key")
        elif key in known:
            yield from check(item, known[key], join(where, key))
        elif named:
            yield from _check_named(key, item, schema, where)
        elif isinstance(others, dict):
            yield from check(item, others, join(where, key))
        elif not others:
            yield unknown(where, key, known)
    for key in schema.get("required", ()):
        if key not in value:
            yield missing(join(where, key), known[key])


def _check_named(key: str, item: object, schema: Schema, where: str) -> list[Problem]:
    """Check an entry of a mapping whose keys must match a pattern."""
    for pattern, values in schema["patternProperties"].items():
        if re.fullmatch(pattern, key):
            return check(item, values, join(where, key))
    return [Problem(where, f"got the name {shown(key)}, expected {expected(schema)}", "change the name")]


def _fits(value: object, schema: Schema) -> bool:
    options = _options(schema)
    if options and not any(type(value) is type(option) and value == option for option in options):
        return False
    kind = schema.get("type", "")
    if not isinstance(value, _TYPES.get(kind, object)) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if isinstance(value, str):
        return _is_text(value) and _matches(value, schema)
    if isinstance(value, list | tuple):
        return bool(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))
    return not isinstance(value, int | float) or isinstance(value, bool) or _in_range(value, schema)


def _in_range(value: float, schema: Schema) -> bool:
    return bool(
        -LARGEST_INTEGER <= value <= LARGEST_INTEGER  # false for NaN and infinities too
        and schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        and ("multipleOf" not in schema or value % schema["multipleOf"] == 0)
    )


def _matches(value: str, schema: Schema) -> bool:
    pattern = schema.get("pattern")
    if pattern is not None and not re.fullmatch(pattern, value):
        return False
    return bool(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", LONGEST_TEXT))


def _is_text(value: str) -> bool:
    """Return whether a text is short and printable: no control characters, no unpaired surrogates."""
    return len(value) <= LONGEST_TEXT and not any(
        (c < " " and c not in "\n\t") or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value
    )


def _options(schema: Schema) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    return list(schema.get("enum", []))


def _allowed(options: list[Any]) -> str:
    return f"allowed: {', '.join(str(option) for option in options)}"


def _hint(value: object, schema: Schema) -> str:
    branches = schema.get("anyOf", [schema])
    kinds = {branch.get("type") for branch in branches}
    if not isinstance(value, str):
        single = value is not None and not isinstance(value, Mapping | list | tuple)
        return f"write a list: [{shown(value)}]" if single and kinds <= {"array", "null"} else ""
    if words := [o for branch in branches for o in _options(branch) if isinstance(o, str)]:
        return closest(value[:_SHOWN], words)
    if "boolean" in kinds and value.lower() in {"yes", "no", "on", "off"}:
        return "YAML 1.2 has only true and false"
    if kinds & {"integer", "number", "boolean"} and not isinstance(plain_value(value), str):
        return "write it without quotes"
    return f"write a list: [{value[:_SHOWN]}]" if kinds <= {"array", "null"} else ""
