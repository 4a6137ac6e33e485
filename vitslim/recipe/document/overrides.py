"""Overrides `KEY=VALUE` of single recipe values, applied before validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from vitslim.errors import Problem, RecipeError
from vitslim.recipe.document.check import Schema, inlined, join, shown
from vitslim.recipe.document.grammar import recipe_schema, split_entry
from vitslim.recipe.document.yaml12 import MAX_DEPTH, parse_yaml


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    """Write each `KEY=VALUE` into a recipe document, in order, and create missing parents.

    A key is a dotted path; numbers are list positions (`stages.0.prune.pruning_ratio`). A value is YAML; where only
    text is allowed it is taken literally. Returns the problems; the validation that follows reports unknown keys.
    """
    problems: list[Problem] = []
    if not overrides:
        return problems
    published = recipe_schema()
    schema = inlined(published, published["$defs"])
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps) or len(steps) > MAX_DEPTH:
            problems.append(
                Problem("--set", f"got {shown(override)}, expected KEY=VALUE", "such as --set model.timm=NAME")
            )
            continue
        try:
            _write(document, steps, _value(text, _schema_at(schema, steps)))
        except RecipeError as error:
            problems += [Problem(p.where or ".".join(steps), p.message, p.hint) for p in error.problems]
    return problems


def _write(document: dict[str, Any], steps: list[str], value: Any) -> None:
    holder: Any = document
    for depth, step in enumerate(steps[:-1]):
        where = ".".join(steps[: depth + 1])
        index = _index(holder, step, where)
        child = _child(holder, index)
        if child is None:
            holder[index] = child = {}
        elif _is_stage(steps, depth):
            holder[index] = child = _entry(child, steps[depth + 1], where)
        elif not isinstance(child, dict | list):
            _refuse(join(where, steps[depth + 1]), f"{where} is {shown(child)}, not a mapping", "")
        holder = child
    holder[_index(holder, steps[-1], ".".join(steps))] = value


def _index(holder: Any, step: str, where: str) -> str | int:
    if isinstance(holder, dict):
        return step
    if step.isdecimal() and len(step) < 10 and int(step) < len(holder):
        return int(step)
    hint = f"positions are 0 to {len(holder) - 1}" if holder else "the list is empty"
    _refuse(where, f"the list has no position {shown(step)}", hint)


def _child(holder: Any, index: str | int) -> Any:
    return holder.get(index) if isinstance(holder, dict) else holder[index]


def _is_stage(steps: list[str], depth: int) -> bool:
    return depth == 1 and steps[0] == "stages"


def _entry(entry: Any, kind: str, where: str) -> Any:
    """Return a stage entry as a mapping, after checking that it has the kind that the override names."""
    if not isinstance(entry, str | dict) or not entry:
        _refuse(join(where, kind), f"{where} is {shown(entry)}, not a stage", "")
    own, _ = split_entry(entry)
    if own != kind:
        hint = f"write {where}.{own}" if isinstance(own, str) else ""
        _refuse(join(where, kind), f"{where} is a stage of kind {shown(own)}, not {shown(kind)}", hint)
    return {own: {}} if isinstance(entry, str) else entry


def _value(text: str, schema: Schema | None) -> Any:
    """Return the YAML value of a text, or the text itself where only text is allowed, so that paths need no quotes."""
    kinds = _kinds(schema)
    only_text = "string" in kinds and kinds <= {"string", "null"}
    try:
        value = parse_yaml(text) if text.strip() else None
    except RecipeError:
        if only_text:
            return text
        _refuse("", f"got {shown(text)}, which is not valid YAML", "put quotes around the value")
    if value is None:
        return None if not only_text or text in {"", "null"} else text
    return text if only_text and not isinstance(value, str) else value


def _kinds(schema: Schema | None) -> set[str]:
    if schema is None:
        return set()
    return {str(branch.get("type", "")) for branch in schema.get("anyOf", [schema])}


def _schema_at(schema: Schema, steps: list[str]) -> Schema | None:
    """Return the schema at a path of a recipe, or None if the path does not exist."""
    if not steps:
        return schema
    step, rest = steps[0], steps[1:]
    for branch in schema.get("anyOf", [schema]):
        others = branch.get("additionalProperties")
        inner = branch.get("properties", {}).get(step)
        if inner is None and isinstance(others, dict):
            inner = others
        if inner is None and step.isdecimal():
            inner = branch.get("items")
        found = _schema_at(inner, rest) if inner is not None else None
        if found is not None:
            return found
    return None


def _refuse(where: str, message: str, hint: str) -> NoReturn:
    raise RecipeError([Problem(where, message, hint)])
