"""The stage entries of a recipe: one frozen, typed config a method. What they do lives in `vitslim/stages`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

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


class TeacherModel(Config):
    """A teacher that is another timm model."""

    timm: TimmName
    checkpoint: str | None = None


Teacher = str | TeacherModel
"""`none`, `previous`, `dense`, the name of an earlier stage, or another timm model."""


class Train(Config):
    """One training schedule; the optimiser is AdamW with a cosine schedule."""

    epochs: PositiveInt = 3
    batch: PositiveInt = 64
    lr: PositiveFloat = Field(5e-5, json_schema_extra={ASSUMED: True})
    wd: Annotated[float, Field(ge=0)] = Field(0.05, json_schema_extra={ASSUMED: True})
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="fraction of all steps")
    clip: PositiveFloat = Field(1.0, description="maximal gradient norm")
    images: PositiveInt | None = Field(None, description="use only so many training images; all when left out")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Literal["none", "light"] = "none"


class Loss(Config):
    """Weights of the distillation terms; zero switches a term off."""

    hard: Annotated[float, Field(ge=0)] = 1.0
    soft: Annotated[float, Field(ge=0)] = 1.0


class DepGraph(StageConfig):
    """Structural pruning of coupled groups (DepGraph, CVPR 2023)."""

    method: Literal["depgraph"]
    importance: Literal["magnitude_l2", "taylor"] = "magnitude_l2"
    ratio: Ratio = Field(0.5, description="fraction of the indices of each axis that go")
    mode: Literal["uniform", "bottleneck"] = Field("uniform", description="bottleneck leaves the embedding untouched")
    round_to: PositiveInt = Field(16, description="kept indices are rounded down to a multiple of this")
    batches: PositiveInt = Field(8, description="calibration batches for Taylor importance")
    batch: PositiveInt = 32


class TwoFour(StageConfig):
    """2:4 semi-structured sparsity: two of every four weights along the reduction dimension stay."""

    method: Literal["two-four"]
    layers: Literal["gemm"] | tuple[str, ...] = Field(
        "gemm", description="all eligible linear layers, or names of layers"
    )
    score: Literal["magnitude"] = "magnitude"


class Distill(StageConfig):
    """Training with a teacher; `teacher: none` is plain fine-tuning."""

    method: Literal["distill"] = "distill"
    teacher: Teacher = "dense"
    loss: Loss = Loss()
    temperature: PositiveFloat = Field(1.0, json_schema_extra={ASSUMED: True})
    train: Train = Train()


class Ptq(StageConfig):
    """Post-training quantisation from calibration images."""

    method: Literal["ptq"]
    bits: Literal[8] = 8
    calibrate: Literal["minmax", "mse"] = "mse"
    skip: tuple[str, ...] = Field((), description="layers that stay in float")


class Etps(StageConfig):
    """eTPS: keep the tokens that the class token attends to most, squeeze the others into them (CVPR 2023)."""

    method: Literal["etps"]
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (3, 6, 9)
    keep: KeepRatio = 0.7
    rounding: Literal["ceil", "floor"] = Field(
        "ceil", description="assumed: the paper does not say", json_schema_extra={ASSUMED: True}
    )


class Export(StageConfig):
    """The ONNX file."""

    method: Literal["onnx"] = "onnx"
    opset: Literal[21] = 21


AnyStage = DepGraph | TwoFour | Distill | Ptq | Etps | Export

KINDS: dict[str, tuple[type[StageConfig], ...]] = {
    "prune": (DepGraph, TwoFour),
    "distill": (Distill,),
    "quantize": (Ptq,),
    "token-squeeze": (Etps,),
    "export": (Export,),
}
"""Stage kind, as written in a recipe, to the configs of its methods."""
