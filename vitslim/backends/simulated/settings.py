"""Reading settings of simulated targets: packaged files, a person's own, overrides, and errors that name the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vitslim.errors import InputError, UsageError, closest

WORDING = {
    "extra_forbidden": "unknown key",
    "tuple_type": "input should be a list",
    "model_type": "input should be a mapping",
}
HINT = "give a YAML file, or the name of a target such as systolic"


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Settings)


def packaged(name: str) -> dict[str, Any]:
    """Values of a settings file that ships with vitslim."""
    return _parse(files(__package__).joinpath("specs", name).read_text(encoding="utf-8"), name)


def read_settings(path: Path) -> dict[str, Any]:
    """Values of a person's settings file. Raises InputError for one that is missing or no YAML mapping."""
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", HINT) from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not a text file", HINT) from error


def validated(kind: type[S], values: Mapping[str, Any], example: Mapping[str, Any], where: str) -> S:
    """Settings from values. Raises UsageError with every wrong key, and a working value of `example` for the first."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error, example, where) from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `changes`; mappings inside may be given in part."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = merged(base[key], value) if nested else value
    return result


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"'{where}' is not valid YAML", str(error).splitlines()[0]) from error
    if not isinstance(values, dict):
        raise InputError(f"'{where}' is not a YAML mapping", "write keys and values, such as 'array: [128, 128]'")
    return values


def _usage_error(error: ValidationError, example: Mapping[str, Any], where: str) -> UsageError:
    """One sentence with every wrong key, and a hint with a working value for the first."""
    problems = error.errors(include_url=False)
    parts = [f"{_path(p['loc'])}: {WORDING.get(p['type'], p['msg'][:1].lower() + p['msg'][1:])}" for p in problems]
    first = problems[0]["loc"]
    return UsageError(f"{where}: {'; '.join(parts)}", _hint(first, example))


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _hint(location: tuple[int | str, ...], example: Any) -> str:
    trail: list[str] = []
    for part in location:
        if not isinstance(example, Mapping):
            break
        if part not in example:
            return closest(str(part), map(str, example))
        trail.append(str(part))
        example = example[part]
    return f"for example {'.'.join(trail)}: {json.dumps(example)}"
