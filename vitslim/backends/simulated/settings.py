"""Settings of simulated targets: packaged files, settings files of users, changed keys, and errors with the key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vitslim.errors import InputError, UsageError, closest

WORDING = {
    "extra_forbidden": "unknown key",
    "tuple_type": "input should be a list",
    "model_type": "input should be a mapping",
}
HINT = "give a YAML file, or the name of a target such as systolic"
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]


class Settings(BaseModel):
    """Base of all settings: frozen, without unknown keys or type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


S = TypeVar("S", bound=Settings)


def packaged(package: str, name: str) -> dict[str, Any]:
    """Return the values of a YAML file that ships in a package, such as that of a family of targets."""
    return _parse(files(package).joinpath(name).read_text(encoding="utf-8"), name)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the values of a user's settings file. Raises InputError when it is missing or not a YAML mapping."""
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", HINT) from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not a text file", HINT) from error


def validated(kind: type[S], values: Mapping[str, Any], example: Mapping[str, Any], where: str) -> S:
    """Return settings from values.

    Raises UsageError with every invalid key; the hint gives the value of `example` for the first of them.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error, example, where) from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `changes`; nested mappings are merged."""
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
    """Return one sentence with every invalid key, and a hint with a valid value for the first."""
    problems = error.errors(include_url=False)
    parts = [f"{_path(p['loc'])}: {WORDING.get(p['type'], _message(p['msg']))}" for p in problems]
    first = problems[0]["loc"]
    return UsageError(f"{where}: {'; '.join(parts)}", _hint(first, example))


def _message(text: str) -> str:
    """Return the message of a problem in lower case, without the prefix of errors that validators raise."""
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


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
