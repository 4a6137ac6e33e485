"""Configs of `export` stages."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from vitslim.recipe.config import Phase, StageConfig, one_of

PROFILES = {
    "portable": "signed integers, zero points of 0 and static scales, as TensorRT, OpenVINO and ONNX Runtime read them",
    "ort-cpu": "the forms that ONNX Runtime runs fastest on CPUs",
    "fp16": "half-precision floats, for a model that is not quantized",
}
"""Names of the export profiles; `stages/export/profile.py` says what each writes."""


class Export(StageConfig):
    """Write the ONNX file."""

    kind: ClassVar[str] = "export"
    phase: ClassVar[Phase] = Phase.EXPORT

    method: Literal["onnx"] = "onnx"
    opset: Literal[21] = 21
    profile: Annotated[str, one_of(PROFILES, "the form of the file")] = "portable"
