"""Keys of the preprocessing of images into the input of a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vitslim.recipe.config import EXPECTED, Config


class PreprocessingConfig(Config):
    """Values that override those of the model's own preprocessing; each key that is not set keeps the model's value."""

    mean: Annotated[tuple[float, ...], Field(min_length=1)] | None = Field(
        None, description="mean of each channel for pixels in [0, 1], or one value for all channels"
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] | None = Field(
        None, description="standard deviation of each channel, or one value for all channels"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = Field(
        None, description="filter of the resize"
    )
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="side of the crop as a fraction of the resized image"
    )
    crop_mode: Literal["center", "squash", "border"] | None = Field(
        None,
        description="center: resize the shorter side and crop; squash: resize both sides; border: pad to the aspect "
        "ratio of the input",
    )
    input_size: (
        Annotated[
            tuple[PositiveInt, ...],
            Field(
                min_length=3, max_length=3, json_schema_extra={EXPECTED: "[channels, height, width] as three integers"}
            ),
        ]
        | None
    ) = Field(
        None,
        description="channels, height and width. A model that is built for one size takes it from `kwargs.img_size`",
    )

    def values(self) -> dict[str, Any]:
        """Return the keys that are set, with their values."""
        return self.model_dump(exclude_none=True)
