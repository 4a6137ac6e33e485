"""Latency tables on disk, and the table that a stage of a recipe names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from pydantic import ValidationError

from vitslim.errors import InputError, Problem
from vitslim.files import write_atomically
from vitslim.recipe.config import StageConfig
from vitslim.recipe.schema import Model
from vitslim.results import LatencyTable

VERSION = LatencyTable.model_fields["schema_version"].default


def default_path(model: str, backend: str) -> Path:
    """`MODEL.BACKEND.table.json` in the current directory; what a file name may not hold becomes `-`."""
    return Path(re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}.{backend}.table.json"))


def check_writable(path: Path) -> None:
    """Raise InputError, before any work, for a file that cannot be written where it should go."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder", "choose a file with --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder '{path.parent}' cannot be written", "choose another file with --out")


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table in one step: a failure leaves the file as it was. Raises InputError when it cannot be written."""
    write_atomically(path, table.model_dump_json().encode(), "choose another file with --out")


def read_table(path: Path) -> LatencyTable:
    """The table in a file. Raises InputError for one that is missing, corrupt, or of another schema version."""
    hint = "write it again: vitslim bench --table MODEL --backend BACKEND --out FILE"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", hint) from error
    try:
        version = json.loads(data).get("schema_version")
    except (ValueError, AttributeError) as error:
        raise InputError(f"'{path}' is not a latency table, or was cut off", hint) from error
    if version != VERSION:
        raise InputError(f"'{path}' has schema version {version!r}, this vitslim reads version {VERSION}", hint)
    try:
        return LatencyTable.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"'{path}' is not a latency table, or corrupt: {place}: {first['msg']}", hint) from error


def table_path(config: StageConfig) -> Path | None:
    """The file that a stage names in `budget.table`."""
    name = getattr(getattr(config, "budget", None), "table", None)
    return None if name is None else Path(name)


def stage_table(config: StageConfig, position: int) -> LatencyTable | None:
    """The table that a stage of a recipe names. Raises InputError, with the key, when it cannot be read."""
    path = table_path(config)
    if path is None:
        return None
    try:
        return read_table(path)
    except InputError as error:
        raise InputError(f"{_key(config, position)}: {error.message}", error.hint) from error


def table_problems(table: LatencyTable | None, model: Model, config: StageConfig, position: int) -> list[Problem]:
    """What is wrong with the table of a stage: it must be of the recipe's model, built with the same arguments."""
    if table is None or (table.model, table.kwargs) == (model.timm, model.kwargs):
        return []
    wanted, found = _shown(model.timm, model.kwargs), _shown(table.model, table.kwargs)
    options = "".join(f" --kwargs {name}={value}" for name, value in model.kwargs.items())
    command = f"vitslim bench --table {model.timm}{options} --backend {table.backend} --batch {table.batch}"
    return [Problem(_key(config, position), f"the table is of {found}, the model is {wanted}", f"build one: {command}")]


def _shown(model: str, kwargs: dict[str, int | float | str | bool]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(kwargs.items()))
    return f"{model}({arguments})" if arguments else model


def _key(config: StageConfig, position: int) -> str:
    return f"stages.{position}.{config.kind}.budget.table"
