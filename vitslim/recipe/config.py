"""What every config of a recipe has in common, and the words of the published schema."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EXPECTED = "x-expected"
"""Schema key with the words for a value that a pattern describes."""

ASSUMED = "x-assumed"
"""Schema key of a default that no paper confirms; a report lists those that a run used (specs, section 6)."""

TIMM_PATTERN = r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$"
TimmName = Annotated[
    str,
    Field(
        pattern=TIMM_PATTERN, json_schema_extra={EXPECTED: "the name of a timm model, such as deit_tiny_patch16_224"}
    ),
]

Ratio = Annotated[float, Field(ge=0, lt=1)]
KeepRatio = Annotated[float, Field(gt=0, le=1)]


class Config(BaseModel):
    """Base of all configs: frozen, unknown keys rejected, no silent coercion of strings to numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StageConfig(Config):
    """Keys that every stage takes."""

    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9-]*$",
        max_length=64,
        description="name that later stages can refer to",
        json_schema_extra={EXPECTED: "lower-case letters, digits and '-', beginning with a letter"},
    )
