"""The base of all stage configs, and the keywords of the published schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from vitslim.errors import Problem

if TYPE_CHECKING:
    from vitslim.recipe.profiles import Profile
    from vitslim.recipe.stages.training import Train

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


class Phase(Enum):
    """The phase of a stage in a recipe; `rules.py` defines which phase may follow which."""

    STRUCTURE = "structural pruning"
    TOKENS = "token squeezing"
    MASK = "a sparsity mask"
    TRAIN = "training"
    PRECISION = "quantization"
    EXPORT = "export"


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


class StageConfig(Config):
    """Keys and properties that every stage has."""

    kind: ClassVar[str]
    """The key that begins a stage entry: `prune`, `distill`, ..."""
    phase: ClassVar[Phase]

    method: str
    name: str | None = Field(
        None,
        pattern=r"^[a-z][a-z0-9-]*$",
        max_length=64,
        description="name that later stages can refer to",
        json_schema_extra={EXPECTED: "lower-case letters, digits and '-', beginning with a letter"},
    )

    @property
    def removes_attention(self) -> bool:
        """Whether a block may have no attention after this stage."""
        return False

    @property
    def squeezed_blocks(self) -> tuple[int, ...]:
        """Positions of the blocks in which this stage reduces the number of tokens."""
        return ()

    @property
    def schedule(self) -> Train | None:
        """The training schedule of the stage; None for a stage that does not train."""
        return None

    @property
    def export_profile(self) -> Profile | None:
        """The form of the file that the stage writes; None for a stage that writes none."""
        return None

    @property
    def has_feature_loss(self) -> bool:
        """Whether the stage records a feature loss of each block, which a later stage can read."""
        return False

    @property
    def needs_measured_backend(self) -> str:
        """The key that needs a measured backend that runs ONNX files; empty if there is none."""
        return ""

    def problems(self, before: Sequence[StageConfig], after: Sequence[StageConfig]) -> Iterator[Problem]:  # noqa: ARG002
        """Yield contradictions among the keys, given the stages before and after. `where` is relative to the stage."""
        yield from ()

    def warnings(self) -> Iterator[Problem]:
        """Yield advice on keys that are legal but seldom useful. `where` is relative to the stage."""
        yield from ()


def names_of(stages: Sequence[StageConfig]) -> list[str]:
    """Return the names by which later stages can refer to these stages: own names and kinds, without repeats."""
    return list(dict.fromkeys(name for config in stages for name in (config.name, config.kind) if name))
