"""The base of the configs of `quantize` stages: keys of every method."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from vitslim.recipe.formats.file_form import INT4_OPSET
from vitslim.recipe.stage_config import Phase, StageConfig

Bits = Annotated[int, Field(ge=2, le=8)]
INT4_BITS = 4


class QuantizedLayers(StageConfig):
    """Keys of every quantization method."""

    kind: ClassVar[str] = "quantize"
    phase: ClassVar[Phase] = Phase.PRECISION

    first_last_bits: Bits | None = Field(
        None, description="bits of the weights of the patch embedding and the head, without groups; default: `bits`"
    )
    skip: tuple[str, ...] = Field((), description="layers that stay in float")

    @property
    def fewest_bits(self) -> int:
        """The fewest bits that a quantized weight may have, but for those of `first_last_bits`."""
        raise NotImplementedError

    @property
    def lowest_opset(self) -> int:
        """The lowest ONNX opset that stores the weights of this stage: 21 for INT4."""
        fewest = min(self.fewest_bits, self.first_last_bits or self.fewest_bits)
        return INT4_OPSET if fewest <= INT4_BITS else super().lowest_opset
