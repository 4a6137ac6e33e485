"""Configs of `export` stages."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vitslim.recipe.config import one_of
from vitslim.recipe.profiles import PROFILES, Profile
from vitslim.recipe.stage_config import Phase, StageConfig


class Export(StageConfig):
    """Write the ONNX file."""

    kind: ClassVar[str] = "export"
    phase: ClassVar[Phase] = Phase.EXPORT

    method: Literal["onnx"] = "onnx"
    opset: Literal[21] = Field(21, description="version of the ONNX operator set")
    profile: Annotated[str, one_of(PROFILES, "form of the file")] = "portable"

    @property
    def export_profile(self) -> Profile:
        """The form of the file."""
        return PROFILES[self.profile]
