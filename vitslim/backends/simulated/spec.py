"""Settings of the systolic target: validated values, from the packaged file or a person's own, with overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vitslim.errors import InputError, UsageError, closest

Dataflow = Literal["ws", "os", "is"]
PACKAGED = "systolic.yaml"
WORDING = {
    "extra_forbidden": "unknown key",
    "tuple_type": "input should be a list",
    "model_type": "input should be a mapping",
}


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VectorPasses(_Settings):
    """How often an element goes through a lane of the vector unit."""

    softmax: PositiveInt
    norm: PositiveInt
    gelu: PositiveInt
    add: PositiveInt


class VectorUnit(_Settings):
    """Runs what is no matrix product."""

    lanes: PositiveInt | Literal["columns"]
    passes: VectorPasses


class SystolicSpec(_Settings):
    """One systolic array; `specs/systolic.yaml` explains every key and says where its value comes from."""

    array: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
    dataflow: Dataflow
    overlap: Literal["none", "double_buffer"]
    counters: Literal["clean", "scalesim"]
    sparsity: Literal["layer", "row", "off"]
    clock_ghz: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    vector: VectorUnit

    @property
    def lanes(self) -> int:
        """Lanes of the vector unit."""
        return self.array[1] if self.vector.lanes == "columns" else self.vector.lanes


def load_spec(overrides: Mapping[str, Any] | None = None, path: Path | None = None) -> SystolicSpec:
    """The packaged settings, or those of a file, with some keys replaced; `vector` may be given in part.

    Raises InputError for a file that is missing or not a YAML mapping, UsageError for wrong keys and values.
    """
    packaged = _parse(files(__package__).joinpath("specs", PACKAGED).read_text(encoding="utf-8"), PACKAGED)
    own = _read(path) if path else {}
    values = _merged(_merged(packaged, own), overrides or {})
    try:
        return SystolicSpec.model_validate(values)
    except ValidationError as error:
        where = str(path) if path and not overrides else "sim: systolic"
        raise _usage_error(error, packaged, where) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror}", "give a YAML file, or the name systolic"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not a text file", "give a YAML file, or the name systolic") from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"'{where}' is not valid YAML", str(error).splitlines()[0]) from error
    if not isinstance(values, dict):
        raise InputError(f"'{where}' is not a YAML mapping", "write keys and values, such as 'array: [128, 128]'")
    return values


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = _merged(base[key], value) if nested else value
    return result


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
