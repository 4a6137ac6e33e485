"""One training schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vitslim.recipe.config import ASSUMED, Config


class Train(Config):
    """Training with AdamW and a cosine learning-rate schedule."""

    epochs: PositiveInt = Field(3, description="passes over the training images")
    batch: PositiveInt = Field(64, description="images per optimizer step")
    lr: PositiveFloat = Field(5e-5, description="peak learning rate", json_schema_extra={ASSUMED: True})
    wd: Annotated[float, Field(ge=0)] = Field(0.05, description="weight decay", json_schema_extra={ASSUMED: True})
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="fraction of the steps in which the learning rate rises"
    )
    clip: PositiveFloat = Field(1.0, description="maximum gradient norm")
    images: PositiveInt | None = Field(None, description="train on at most N images, balanced over classes")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="label smoothing of the hard loss")
    augment: Literal["none", "light", "strong"] = Field(
        "none", description="light: crops of at least 70 % of the area; strong: of at least 10 %, and color jitter"
    )
    mix: bool = Field(False, description="train on mixtures of two images, which have no label; needs a teacher")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="data type of activations and matmuls; weights are always float32. auto: bfloat16 if the device "
        "has instructions for it",
    )
    compile: bool = Field(False, description="use torch.compile, which pays off in long training on a GPU")
