"""Write and read a report as JSON, and its JSON schema."""

from __future__ import annotations

import ast
import inspect
import json
from typing import Any

from pydantic import ValidationError

from vitslim.errors import InputError
from vitslim.results import (
    REPORT_SCHEMA_VERSION,
    Report,
    accelerator_result,
    gate_result,
    operator_profile,
    pruned_widths,
    tensor_bits,
    token_picture,
    two_four,
    values,
)

DOCUMENTED = (
    values,
    gate_result,
    token_picture,
    accelerator_result,
    pruned_widths,
    tensor_bits,
    two_four,
    operator_profile,
)
"""Modules with the classes of a report."""
DIGITS_MAX = 18
"""Longest integer of a report, with its sign."""
RERUN_HINT = "run the recipe again with `vitslim run`"


def render_json(report: Report) -> str:
    """Return a report as indented JSON; numbers that are not finite are the strings `Infinity` and `NaN`."""
    return report.model_dump_json(indent=2)


def parse_report(text: str) -> Report:
    """Return the report that `render_json` wrote.

    Raises InputError when the text is not JSON, not a report, or has another schema version.
    """
    try:
        data = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise InputError("the report is not valid JSON", RERUN_HINT) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise InputError("the file is JSON, but not a vitslim report: it has no schema_version", RERUN_HINT)
    if data["schema_version"] != REPORT_SCHEMA_VERSION:
        found = f"the report has schema version {data['schema_version']!r}"
        raise InputError(
            f"{found}, this version of vitslim reads {REPORT_SCHEMA_VERSION}",
            f"{RERUN_HINT}, or read it with the version of vitslim that wrote it",
        )
    try:
        return Report.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        count = error.error_count()
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise InputError(f"the report is corrupt at '{place}': {first['msg']}{more}", RERUN_HINT) from error


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise ValueError("an integer of too many digits")
    return int(digits)


def report_schema() -> dict[str, Any]:
    """Return the JSON schema of `report.json`, with the docstrings in `vitslim/results` as descriptions."""
    schema = Report.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    documented = _attribute_docstrings()
    for name, definition in {**schema["$defs"], Report.__name__: schema}.items():
        for field, description in documented[name].items():
            definition["properties"][field]["description"] = description
    return schema


def _attribute_docstrings() -> dict[str, dict[str, str]]:
    """Return the docstring of each field of each class. Parsed on demand, because it would slow down every import."""
    found: dict[str, dict[str, str]] = {}
    for module in DOCUMENTED:
        for statement in ast.parse(inspect.getsource(module)).body:
            if isinstance(statement, ast.ClassDef):
                found[statement.name] = _documented_fields(statement)
    return found


def _documented_fields(definition: ast.ClassDef) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(description))):
                fields[name] = inspect.cleandoc(description)
    return fields
