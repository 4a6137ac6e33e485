"""Keys of training, with and without a teacher."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.recipe.config import ASSUMED, Config, StageConfig, TimmName


class TeacherModel(Config):
    """A teacher that is another timm model."""

    timm: TimmName
    checkpoint: str | None = None


Teacher = str | TeacherModel
"""`none`, `previous`, `dense`, the name of an earlier stage, or another timm model."""


class Train(Config):
    """One training schedule; the optimizer is AdamW with a cosine schedule."""

    epochs: PositiveInt = 3
    batch: PositiveInt = 64
    lr: PositiveFloat = Field(5e-5, json_schema_extra={ASSUMED: True})
    wd: Annotated[float, Field(ge=0)] = Field(0.05, json_schema_extra={ASSUMED: True})
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="fraction of all steps")
    clip: PositiveFloat = Field(1.0, description="maximal gradient norm")
    images: PositiveInt | None = Field(None, description="use only so many training images; all when left out")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: Literal["none", "light", "strong"] = Field(
        "none", description="light: crops of 70 % of the area or more; strong: of 10 % or more, and other colors"
    )
    mix: bool = Field(False, description="show mixtures of two images; only a teacher can tell what they are")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    precision: Literal["float32", "tfloat32", "bfloat16", "auto"] = Field(
        "float32",
        description="of products; weights are float32 always. tfloat32: on a GPU, and float32 elsewhere; auto: "
        "bfloat16 where the device has instructions for it, and float32 elsewhere",
    )
    compile: bool = Field(False, description="torch.compile: a minute first, then faster on a GPU")


class Loss(Config):
    """Weights of the distillation terms; zero switches a term off."""

    hard: Annotated[float, Field(ge=0)] = 1.0
    soft: Annotated[float, Field(ge=0)] = 1.0
    feature: Annotated[float, Field(ge=0)] = Field(0.0, description="distance of what critical blocks give out")


class Features(Config):
    """Which blocks the feature loss compares, and on which images (GPUSQ, section 4)."""

    blocks: Literal["last_third", "all"] | tuple[str, ...] = Field(
        "last_third", json_schema_extra={ASSUMED: True}, description="or names of blocks, such as blocks.11"
    )
    distance: Literal["mean", "effect"] = Field(
        "mean",
        description="mean: squared distance of all numbers alike; effect: of each as far as the teacher's logits move "
        "with it, in squared logits",
    )
    only_agreeing: bool = Field(True, description="only images on which teacher and student predict the same class")


class Taught(StageConfig):
    """Keys of stages that train with a teacher."""

    teacher: Teacher = "dense"
    loss: Loss = Loss()
    labels: Literal["dataset", "teacher"] = Field(
        "dataset", description="what the hard loss aims at; teacher: its predictions, so that images need no labels"
    )
    temperature: PositiveFloat = Field(1.0, json_schema_extra={ASSUMED: True})
    features: Features = Features()
    perturb: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="move images towards classes drawn from all that the teacher knows, by up to so many standard "
        "deviations of their pixels: for folders of few classes. Takes another pass through the teacher, and back",
    )
    train: Train = Train()


class FeatureWeight(Config):
    """Weights of the blocks in the feature loss: n * softmax(sign * L / tau) of losses L that a stage ended with."""

    stage: str = Field("distill", description="the stage whose feature losses are read")
    sign: Literal[-1, 1] = Field(-1, json_schema_extra={ASSUMED: True})
    tau: PositiveFloat = Field(1.0, json_schema_extra={ASSUMED: True})
