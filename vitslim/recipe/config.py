"""The base of all configs, common types of keys, and the keywords of the published schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

EXPECTED = "x-expected"
"""Schema keyword: the allowed values of a pattern, in words."""

ASSUMED = "x-assumed"
"""Schema keyword: no source confirms the default value. The report lists each of them that a run used."""

TIMM_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
TimmName = Annotated[
    str,
    Field(
        pattern=TIMM_PATTERN, json_schema_extra={EXPECTED: "the name of a timm model, such as deit_tiny_patch16_224"}
    ),
]

PruningRatio = Annotated[float, Field(ge=0, lt=1)]
"""Fraction that is removed."""
KeepRate = Annotated[float, Field(gt=0, le=1)]
"""Fraction that is kept."""


class Described(Protocol):
    """A value with one line that describes it."""

    @property
    def description(self) -> str: ...


def one_of(names: Mapping[str, str | Described], description: str) -> Any:
    """Return the field metadata of a key that takes one of these names, each with one line that describes it.

    The mapping is read whenever the schema is built, so a new method adds its name to the mapping and to nothing else.
    """

    def extend(schema: dict[str, Any]) -> None:
        schema["enum"] = list(names)
        schema["description"] = f"{description}: " + "; ".join(
            f"{name}: {found if isinstance(found, str) else found.description}" for name, found in names.items()
        )

    return Field(json_schema_extra=extend)


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys rejected, no silent coercion of strings to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)
