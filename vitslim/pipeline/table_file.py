"""Files of latency tables, and the table that a stage of a recipe names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import ValidationError

from vitslim.errors import InputError, Problem
from vitslim.files import exclusive, write_atomically
from vitslim.progress import Progress
from vitslim.recipe.cost_target import CostTarget
from vitslim.recipe.schema import Model
from vitslim.recipe.stage_config import StageConfig
from vitslim.results import LatencyTable

TARGETS = ("budget", "schedule")
"""Keys of stages that limit a cost."""

VERSION = LatencyTable.model_fields["schema_version"].default


def default_path(model: str, backend: str) -> Path:
    """Return `MODEL.BACKEND.table.json` in the current directory; characters not allowed in file names become `-`."""
    return Path(re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}.{backend}.table.json"))


def check_writable(path: Path) -> None:
    """Raise InputError for a path that cannot be written, before the table is built."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder", "choose a file with --out")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder '{path.parent}' cannot be written", "choose another file with --out")


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table atomically. Raises InputError when it cannot be written."""
    write_atomically(path, table.model_dump_json().encode(), "choose another file with --out")


def read_table(path: Path) -> LatencyTable:
    """Read a table. Raises InputError for a file that is missing, corrupt, or of another schema version."""
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


def kept_table(path: Path, build: Callable[[], LatencyTable], progress: Progress) -> LatencyTable:
    """Return the table in a file of a cache folder, or build it and write it there.

    Waits while another process builds a table in that folder, because it would disturb the measurements of this one.
    Raises the errors of `build`, and InputError if the folder cannot be written or the table cannot be read.
    """
    if not path.exists():
        with _filling(path.parent, progress):
            if not path.exists():
                table = build()
                write_table(table, path)
                return table
    progress.say(f"using the table of {path}")
    return read_table(path)


@contextmanager
def _filling(cache: Path, progress: Progress) -> Iterator[None]:
    message = f"waiting for another process, which builds a table in {cache}"
    with ExitStack() as stack:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(cache, on_wait=lambda: progress.say(message)))
        except OSError as error:
            found = f"'{cache}' cannot be written: {error.strerror}"
            raise InputError(found, "choose another folder: --cache") from error
        yield


def table_path(config: StageConfig) -> Path | None:
    """Return the latency table that a stage names; None without one."""
    found = cost_target(config)
    return None if found is None or found[1].table is None else Path(found[1].table)


def cost_target(config: StageConfig) -> tuple[str, CostTarget] | None:
    """Return the key and the value of a stage's cost target; None without one."""
    values = ((key, getattr(config, key, None)) for key in TARGETS)
    return next(((key, value) for key, value in values if isinstance(value, CostTarget)), None)


def cost_targets(stages: Iterable[StageConfig]) -> list[tuple[str, CostTarget]]:
    """Return key and value of the cost targets of all stages that have one."""
    return [found for config in stages if (found := cost_target(config)) is not None]


def stage_table(config: StageConfig, position: int) -> LatencyTable | None:
    """Read the table that a stage names; None without one. Raises InputError, with the key, when it cannot be read."""
    path = table_path(config)
    if path is None:
        return None
    try:
        return read_table(path)
    except InputError as error:
        raise InputError(f"{_key(config, position)}: {error.message}", error.hint) from error


def table_problems(table: LatencyTable | None, model: Model, config: StageConfig, position: int) -> list[Problem]:
    """Return a problem unless the table was built for the recipe's model with the same arguments."""
    if table is None or (table.model, table.kwargs) == (model.name, model.kwargs):
        return []
    expected, found = _call(model.name, model.kwargs), _call(table.model, table.kwargs)
    options = "".join(f" --kwargs {name}={value}" for name, value in model.kwargs.items())
    command = f"vitslim bench --table {model.timm}{options} --backend {table.backend} --batch {table.batch}"
    return [
        Problem(_key(config, position), f"the table is for {found}, the model is {expected}", f"build one: {command}")
    ]


def table_warnings(table: LatencyTable | None, config: StageConfig, position: int, device: str) -> list[str]:
    """Return a warning if a table was measured on another device than this one."""
    if table is None or table.kind == "simulated" or table.environment.device == device:
        return []
    return [
        f"{_key(config, position)}: the table was measured on {table.environment.device}, this machine is {device}; "
        "latencies may differ here"
    ]


def _call(model: str, kwargs: Mapping[str, object]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(kwargs.items()))
    return f"{model}({arguments})" if arguments else model


def _key(config: StageConfig, position: int) -> str:
    found = cost_target(config)
    return f"stages.{position}.{config.kind}.{found[0] if found else TARGETS[0]}.table"
